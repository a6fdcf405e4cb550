"""Traces: from a file of prompts and responses to tokens with labelled steps.

In: JSONL lines, or token ids as they were sampled. Out: `Trace`, its steps as spans kept from the
moment of the cut, its labels, and an `EncodedTrace` of token ids and token spans.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
