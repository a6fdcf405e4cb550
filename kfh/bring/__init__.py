"""Bring: what people have, on the way to a probe, and what comes of it on the way back.

In: data sets and logs of others. Out: trace files, their cost beforehand, results in others' forms.
"""
