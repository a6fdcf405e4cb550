"""Studies: a chain of kfh commands in a file, each stage kept, skipped when done, gone on with.

In: a plan (YAML). Out: the folders that its commands write, and a mark for each finished stage.
"""
