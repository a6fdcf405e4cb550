"""Ranking: SRA and its relatives by head, what chance gives, and the heads that are picked.

In: step scores with labels. Out: figures with intervals for every head, controls, ensembles and
the head set.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
