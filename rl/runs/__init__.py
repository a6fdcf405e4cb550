"""Runs: finished training runs, compared and drawn.

In: run folders. Out: tables over seeds with intervals, where methods stand, figures.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
