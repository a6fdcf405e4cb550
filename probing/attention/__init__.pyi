from .capture import AttentionCapture as AttentionCapture
from .lens import LensCapture as LensCapture
from .passing import PassingSequences as PassingSequences
from .scores import ScoredTrace as ScoredTrace
from .scores import score_traces as score_traces
from .scores import step_baseline as step_baseline
from .scores import step_scores as step_scores
from .store import ScoreStore as ScoreStore
