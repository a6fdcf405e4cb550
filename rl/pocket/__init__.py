"""The pocket reasoner: a tiny model that reasons in R1's style, overthinks, and has known labels.

In: seeds. Out: problems and labelled traces (`task`, `parse`), the trained model (`pretrain`),
its card (`measure`, `traces`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
