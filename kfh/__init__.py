"""kfh: the toolkit for Key-Focus Heads. The command line, the demo and reports live here."""

__version__ = "0.1.0"
