"""Types: what else the heads of a probe are, and what other published scorers of steps do.

In: a finished probe and its model. Out: published head types beside SRA, step scorers under the
probe's own pairs, halves and intervals, and the head maps of others read and compared.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
