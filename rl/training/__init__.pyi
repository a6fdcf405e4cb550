from .job import train as train
from .recipe import TrainConfig as TrainConfig
from .recipe import shipped_recipes as shipped_recipes
from .recipe import train_config as train_config
