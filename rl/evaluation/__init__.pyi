from .config import EvalConfig as EvalConfig
from .job import EvalResult as EvalResult
from .job import evaluate as evaluate
from .measures import efficiency_score as efficiency_score
from .measures import pass_at_k as pass_at_k
from .measures import within_budget as within_budget
from .summary import SetFigures as SetFigures
