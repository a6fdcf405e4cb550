from .concept import concept_figure as concept_figure
from .concept import pocket_concept as pocket_concept
from .interventions import InterventionFigures as InterventionFigures
from .probe import RunFigures as RunFigures
from .robustness import sample_size_figure as sample_size_figure
from .robustness import stability_figure as stability_figure
from .style import save_figure as save_figure
from .trace import step_strip as step_strip
