"""Evaluation: accuracy, length and their trade on question sets, with intervals over questions.

In: a model and question sets. Out: `eval.json` with figures by set and overall.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
