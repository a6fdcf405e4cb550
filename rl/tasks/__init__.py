"""Tasks: what is asked, how it is put to a model, and what counts as right.

In: the name of a question set. Out: questions with a verifier, prompts, verdicts on answers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
