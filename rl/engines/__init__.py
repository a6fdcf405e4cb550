"""Engines: step-level credit in training loops that are not ours.

In: what another loop has of a batch, while it makes its own passes. Out: its advantages, by token,
from `rl.attnpo.credit.credit_tokens` as in the trainer on TRL.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
