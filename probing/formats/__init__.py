"""Formats of others: records of data sets and logs to traces, and results back into them.

In: a file, folder, stream or data set of the hub, and what its records are. Out: trace lines with
one mark at the end of the reasoning, every loss counted; scores and labels in the source's own
records, in tables, and in the form of trainers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
