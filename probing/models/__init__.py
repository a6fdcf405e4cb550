"""Models: loading, identity, decoding, processes.

In: a name, a folder or a model in memory. Out: a frozen model with its tokenizer, a card that
identifies it, and token ids decoded from it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
