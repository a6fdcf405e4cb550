"""Commands: thin functions behind `kfh`, each imports its work when it is called.

In: options. Out: files, and what is said on the screen.
"""
