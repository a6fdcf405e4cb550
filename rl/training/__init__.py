"""Training: a recipe becomes a run folder that can be interrupted and resumed.

In: a recipe, a model, questions. Out: a folder with settings, metrics, checkpoints and the model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
