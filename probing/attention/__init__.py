"""Attention: what the answer's queries look at, exact, while the model runs its own forward pass.

In: a model and encoded traces. Out: attention mass by head and token, S_k and S_base by head and
step, and a store that keeps them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
