"""Answers: what a model answers when its context is changed.

In: a trace, and steps to hide, tokens to take out, or heads to edit. Out: log-probabilities of
the given answer, and answers decoded anew.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
