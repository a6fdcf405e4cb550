from .verl import PassScorer as PassScorer
from .verl import StepEstimator as StepEstimator
from .verl import VerlConfig as VerlConfig
