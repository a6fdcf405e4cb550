"""What can be chosen, by name: metrics, backends, answers, segmenters. Light: imports nothing."""

from __future__ import annotations

DTYPES = ("auto", "float32", "bfloat16", "float16")

Head = tuple[int, int]  # (layer, head), both from 0

GIVEN = "given"  # the steps that the trace file holds
KEEP = ("correct", "all")

METRICS = ("sra", "balanced", "gating")
METRIC_NAMES = {"sra": "SRA", "balanced": "balanced SRA", "gating": "gating accuracy"}
CONTROLS = ("recency", "earliness", "length", "uniform", "all heads")

BACKENDS = ("transformers", "transformer-lens")
BATCH_TOKENS = 8192
MIN_CHARS = 80  # the release's minimum length of a step

SELECTIONS = ("top", "greedy")

NULLS = ("shuffle", "rotate")
RULES = ("overlap", "start")
ANSWERS = ("all", "values", "boxed")

THINK_END = "</think>"
LABELS = ("essential", "redundant", None)
PERMUTATIONS = 1000  # of labels, for the null of the best head
