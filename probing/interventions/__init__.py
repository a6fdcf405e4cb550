"""Interventions: remove steps, take heads out, steer them; does the answer follow?

In: a head set, held-out traces, a verdict on answers. Out: outcomes by arm and dose, effects
against controls with intervals over problems, and the paper's claims held against them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
