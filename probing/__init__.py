"""Probe a language model for Key-Focus Heads: traces, steps, labels, attention, SRA, head sets.

The names of the face (`__init__.pyi`) are the stable Python interface; each is loaded on first
use, so that `import probing` costs nothing.

    from probing import ProbeConfig, probe, segment, step_ranking_accuracy, HeadSet
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
