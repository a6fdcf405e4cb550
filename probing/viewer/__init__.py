"""The trace viewer: one HTML file, nothing from the network.

In: a finished probe, or several of the same traces. Out: a page with the scores of every step, and
of every token by a few heads.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
