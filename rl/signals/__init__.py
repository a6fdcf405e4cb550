"""What else could score a step: formulas on attention between steps, on doubt, and on neither.

In: a response as token ids, cut into steps. Out: `Evidence` of it, and from that S_k / S_base.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
