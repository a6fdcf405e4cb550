"""Chains of definitions: what the tasks with known labels share, whatever their sentences.

In: a problem, its sentences. Out: labelled traces (`writing`), a reading of any response
(`reading`), the task with sets apart from what is held out (`questions`).
"""
