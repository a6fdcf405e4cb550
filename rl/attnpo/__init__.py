"""AttnPO: step-level credit by attention, on TRL's GRPO trainer.

In: rollouts, their verdicts and a head set. Out: advantages of shape (response, token).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
