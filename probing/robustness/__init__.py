"""Robustness: do the heads stay the same, and how many traces does it take to tell?

In: finished probes. Out: correlations beside their ceiling, overlap beside chance, and agreement
by the number of problems.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
