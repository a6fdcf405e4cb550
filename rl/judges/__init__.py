"""Judges: language models that label steps, their votes, and how far they agree.

In: traces with steps and a panel of judges. Out: a label file of the consensus, with every vote.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
