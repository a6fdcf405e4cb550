from .measure import figures as figures
from .parse import parse_problem as parse_problem
from .parse import read as read
from .task import Problem as Problem
from .task import make_problem as make_problem
from .task import make_trace as make_trace
