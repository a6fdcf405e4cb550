from .attnpo.config import AttnPOConfig as AttnPOConfig
from .attnpo.rescale import Rescaling as Rescaling
from .attnpo.rescale import step_scales as step_scales
from .attnpo.trainer import AttnPOTrainer as AttnPOTrainer
from .tasks.questions import load_questions as load_questions
from .training.recipe import TrainConfig as TrainConfig
