"""What can be chosen, by name, as Literal types; and the few values that many share.

Of each type `X` the names stand in a tuple beside it, for loops and messages. Nothing of ours is
imported here.
"""

from __future__ import annotations

from typing import Literal, get_args

Head = tuple[int, int]  # (layer, head), both from 0

Metric = Literal["sra", "balanced", "gating"]
METRICS: tuple[Metric, ...] = get_args(Metric)
METRIC_NAMES = {"sra": "SRA", "balanced": "balanced SRA", "gating": "gating accuracy"}
Scale = Literal["continuous", "classes"]  # of a heatmap's colours
SCALES: tuple[Scale, ...] = get_args(Scale)

Backend = Literal["transformers", "transformer-lens"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Kernel = Literal["auto", "sdpa", "eager", "flash_attention_2"]  # of attention
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
DeviceMap = Literal["none", "auto"]  # how a model is spread
DEVICE_MAPS: tuple[DeviceMap, ...] = get_args(DeviceMap)
BATCH_TOKENS = 8192
BatchTokens = int | Literal["auto"]  # of a forward pass, see `probing.attention.memory`

Selection = Literal["top", "greedy"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)
Null = Literal["problems", "shuffle", "rotate"]
NULLS: tuple[Null, ...] = get_args(Null)
PERMUTATIONS = 1000  # of signs or labels, for the null of the best head
Control = Literal["none", "random-weights"]  # one that takes a pass over the traces
CONTROL_MODELS: tuple[Control, ...] = get_args(Control)
OVERLAP = "answer overlap"  # a control among `probing.ranking.metrics.CONTROLS`
DRAWS = 200  # of fewer problems, of each size
LADDER = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # numbers of problems to draw

Keep = Literal["correct", "all"]
KEEP: tuple[Keep, ...] = get_args(Keep)
Answer = Literal["all", "values", "boxed"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)
Looking = Literal["all", "values", "boxed", "bare"]  # answer tokens that a probe looks back from
LOOKING: tuple[Looking, ...] = get_args(Looking)
Mode = Literal["zero/all", "mean/all", "zero/answer-to-steps", "mean/answer-to-steps"]
MODES: tuple[Mode, ...] = get_args(Mode)  # of silencing heads
Rule = Literal["overlap", "start"]  # how steps take tokens
RULES: tuple[Rule, ...] = get_args(Rule)
Format = Literal["png", "svg", "pdf"]  # of figures
FORMATS: tuple[Format, ...] = get_args(Format)
Label = Literal["essential", "redundant"]
LABELS: tuple[Label | None, ...] = (*get_args(Label), None)

EndAt = Literal["first", "last"]  # which end mark of a response ends its reasoning
END_AT: tuple[EndAt, ...] = get_args(EndAt)
Openings = Literal["strict", "loose"]  # where a phrase opens a step
OPENINGS: tuple[Openings, ...] = get_args(Openings)
Language = Literal["auto", "en", "zh", "es", "fr", "de", "ja"]  # of phrases; auto: each trace's own
LANGUAGES: tuple[Language, ...] = get_args(Language)
Offsets = Literal["characters", "bytes", "utf-16"]  # what the offsets of steps count
OFFSETS: tuple[Offsets, ...] = get_args(Offsets)

POCKET = "pocket"  # by name: the embedded model, and its traces
EMBEDDED = (POCKET, "pocket-long")  # all of them, the second for longer traces
GIVEN = "given"  # the steps that the trace file holds
MIN_CHARS = 80  # the release's minimum length of a step
THINK_END = "</think>"
