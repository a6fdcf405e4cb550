"""Figures: pictures of a probe, a trace, interventions and stability.

In: results, in memory or from disk. Out: matplotlib figures; `save_figure` writes them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
