from .comparison import read_rows as read_rows
from .figures import all_figures as all_figures
from .figures import tradeoff as tradeoff
from .folders import Run as Run
from .folders import find_runs as find_runs
from .folders import read_run as read_run
from .intervals import hierarchical_bootstrap as hierarchical_bootstrap
