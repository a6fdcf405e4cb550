"""Sampling: responses from a model here, vLLM or an endpoint; kept as they come.

In: questions and sampling settings. Out: stored responses, and trace files with the token ids
that were really sampled.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
