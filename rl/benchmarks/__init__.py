"""Benchmarks beside mathematics: choices (GPQA, MMLU) and programs (LiveCodeBench).

In: rows of the public data sets. Out: questions, and verdicts; programs run shut off from the rest.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
