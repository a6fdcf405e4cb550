"""Labelling: which steps are essential, by cause or by rules; how far two labellings agree.

In: traces with steps, a model where the way needs one. Out: labels by trace and step, and
agreement of labellings.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
