"""How many tokens a forward pass may have: what a token takes, and what memory is free.

1. What a token takes at the pass's peak is reckoned from the model's config (`PassBytes`).
2. On CUDA two short passes measure it; the larger number counts (`measured_bytes`).
3. Free is what the device has left: a GPU's own memory, or the machine's and what the control
   groups of this process leave it, which clusters and containers set (`free_bytes`).
4. A share of that holds so many tokens, rounded down to a power of two, so that a machine finds the
   same number again (`tokens_that_fit`).
5. A pass that lacks memory all the same is made in halves (`BatchSize.halve`).

Scores do not depend on the number, but for rounding (1e-6 in float32). A trace longer than it goes
through the model alone.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from probing.attention.capture import AttentionCapture
from probing.choices import BATCH_TOKENS
from probing.errors import memory_lacking
from probing.models.front import Workspace, trunk_of
from probing.models.identity import position_limit, shortest_window

if TYPE_CHECKING:
    from probing.attention.scores import Capture

SHARE = 0.6  # of free memory; the rest is for fragments, and for what a family does beside
GPU_MOST = 65536  # tokens; beyond it a pass is hardly faster and an interruption costs more
CHUNKS = 4  # of rows, at a time: logits, probabilities, and what an eager kernel makes of one
MEASURED = 1024  # tokens of the shorter pass that is measured


@dataclass(frozen=True)
class PassBytes:
    """Bytes that a forward pass takes at its peak, weights left out.

    Args:
        token: for each token of the batch, padding included.
        pair: for each pair of tokens of a row: masks, or whole attention patterns.
    """

    token: int
    pair: int = 0

    @classmethod
    def of(
        cls,
        config: Any,
        dtype: torch.dtype,
        heads: int = 0,
        *,
        answered: bool = False,
        patterns: bool = False,
    ) -> PassBytes:
        """Those of a pass through a model's trunk, without gradient.

        A layer holds most at one of three places: the norm, in float32; attention, with queries,
        keys and values, rotated ones, rows of the answer in float32 and an output in two parts;
        the MLP, with its gate, its up projection and their product. Every layer does so in the
        same memory; what stays is added.

        Args:
            config: of the model.
            dtype: of its weights.
            heads: of all layers, whose masses stay; float32.
            answered: answers are computed over a kept context: keys and values of all layers stay,
                twice (kept, and going on), with a mask; at worst every token has logits.
            patterns: whole attention patterns are made (TransformerLens).

        Example:
            >>> from transformers import LlamaConfig
            >>> small = LlamaConfig(hidden_size=8, intermediate_size=100, num_attention_heads=2)
            >>> PassBytes.of(small, torch.bfloat16, 10)  # 2 · (6 · 8 + 3 · 100) + 8 · 10
            PassBytes(token=776, pair=0)
        """
        text = config.get_text_config()
        size = dtype.itemsize
        hidden, heads_of = int(text.hidden_size), _number(text, "num_attention_heads")
        kv_heads = _number(text, "num_key_value_heads") or heads_of
        dims = ("head_dim", "qk_head_dim", "v_head_dim")
        dim = max(_number(text, *dims), hidden // heads_of if not _number(text, *dims) else 0)
        query, value = heads_of * dim, kv_heads * dim
        inner = _number(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
        mixed = _number(text, "num_experts_per_tok", "num_experts_per_token", "top_k_experts")
        expert = _number(text, "moe_intermediate_size") or inner
        around = size * 6 * hidden  # embeddings, a layer's input, what goes on beside, outputs
        attention = size * (6 * query + 4 * value) + 4 * query + 8 * value
        mlp = size * (3 * inner + mixed * (2 * hidden + 6 * expert))
        token = around + max(12 * hidden, attention, mlp) + 2 * 4 * heads
        kernel = getattr(config, "_attn_implementation", None) or "sdpa"
        windows = shortest_window(config) is not None
        # Truth values, and numbers made of them; an eager kernel has one more for windows.
        masks = 0 if "flash" in kernel else (kernel == "eager") + (windows or answered)
        pair = (2 + size) * masks
        if answered:
            layers = _number(text, "num_hidden_layers")
            token += 2 * 2 * size * value * layers + (size + 8) * int(text.vocab_size)
        if patterns:
            pair += heads_of * (3 * size + 4)
        return cls(token, pair)


def _number(config: Any, *names: str) -> int:
    """The largest of the numbers that a config has under these names; of a list its largest."""
    found = [getattr(config, name, None) for name in names]
    return max((int(max(v) if isinstance(v, list | tuple) else v) for v in found if v), default=0)


def tokens_that_fit(free: float, cost: PassBytes, most: int) -> int:
    """The tokens of a batch for which memory suffices, at worst in a single row: a power of two.

    Args:
        free: bytes that may be taken.
        cost: token · n + pair · n² bytes for n tokens.
        most: tokens, a power of two.

    Returns:
        At least 1: a longer trace goes alone, and whether it fits is seen then.

    Example:
        >>> few, more = PassBytes(10, 1), PassBytes(10)
        >>> tokens_that_fit(1000, few, 4096), tokens_that_fit(1000, more, 4096)
        (16, 64)
    """
    room, token, pair = max(free, 0), cost.token, cost.pair
    # The root of pair · n² + token · n = room, in the form that holds for pair = 0 too.
    tokens = 2 * room / (token + math.sqrt(token**2 + 4 * pair * room))
    return min(most, 2 ** int(math.log2(max(1, tokens))))


def free_bytes(model: torch.nn.Module) -> int:
    """Free memory, in bytes, of the device of a model that has least of it.

    A GPU's holds what torch has reserved there without need. On the CPU the processes that were
    started on this machine share it evenly.
    """
    return min(map(_free_on, {weight.device for weight in model.parameters()}))


def _free_on(device: torch.device) -> int:
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    import psutil

    rooms = [int(psutil.virtual_memory().available), control_group_room()]
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(room for room in rooms if room is not None) // beside


def control_group_room(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that the control groups of this process leave it; None: none limits it, or says so.

    The group and those above it, of version 1 or 2. Pages of files that nothing is at work on
    count as free: they are given back when memory is wanted.

    Args:
        own: the groups of this process, a line each.
        root: where the groups' own files lie.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return None
    rooms: list[int] = []
    for _, kinds, path in (line for line in lines if len(line) == 3):
        if kinds == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            top = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / path.strip("/")
        rooms += [
            room
            for place in (group, *group.parents)
            if place.is_relative_to(top) and (room := _group_room(place, *names)) is not None
        ]
    return min(rooms, default=None)


def _group_room(group: Path, limit: str, used: str, idle: str) -> int | None:
    """What one group leaves; None where it has no limit (`max`), or its files cannot be read."""
    try:
        most, now = (int((group / name).read_text("utf-8")) for name in (limit, used))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, most - now + int(stat.get(idle, 0)))
    except (OSError, ValueError):
        return None


def measured_bytes(capture: Capture, model: torch.nn.Module) -> int:
    """Bytes a token, from the peaks of two passes of a capture on CUDA, one twice the other.

    Few rows are of the answer: their chunks are counted apart.
    """
    device = next(model.parameters()).device
    limit = position_limit(model)  # type: ignore[arg-type]
    tokens = min(MEASURED, (limit or 2 * MEASURED) // 2)
    peaks = []
    with capture:
        # The first pass takes what the libraries keep for good (cuBLAS: tens of MB); not counted.
        for count in (tokens, 2 * tokens, tokens):
            ids = torch.zeros((1, count), dtype=torch.long, device=device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            capture(ids, torch.arange(count, device=device)[None] >= count - 8)
            peaks.append(torch.cuda.max_memory_allocated(device) - before)
    return max(0, peaks[1] - peaks[2]) // tokens


@dataclass
class BatchSize:
    """How many tokens a forward pass may have, padding included.

    Args:
        tokens: the number.
        auto: it was found here, and may become less.
        halved: how often it became less.
    """

    tokens: int
    auto: bool = False
    halved: int = 0

    @classmethod
    def auto_of(cls, model: Any, capture: Capture | None = None) -> BatchSize:
        """As many as memory holds; steps 1 to 4.

        Args:
            model: loaded.
            capture: what the passes are for, not entered; None: answers over kept contexts.
        """
        place = next(model.parameters())
        cost = PassBytes.of(
            model.config,
            place.dtype,
            len(capture.heads) if capture else 0,
            answered=capture is None,
            patterns=not isinstance(capture, AttentionCapture | None),
        )
        if place.is_cuda and capture is not None and not cost.pair:
            cost = PassBytes(max(cost.token, measured_bytes(capture, model)))
        room = SHARE * free_bytes(trunk_of(model)) - CHUNKS * Workspace().budget(place.device)
        most = GPU_MOST if place.is_cuda else BATCH_TOKENS
        return cls(tokens_that_fit(room, cost, most), auto=True)

    def __str__(self) -> str:
        return f"batches of {self.tokens:,} tokens"

    def halve(self, error: BaseException, tokens: int, rows: int) -> bool:
        """Make it half of a batch for which memory was too small, and say so.

        Args:
            error: what the pass ended with.
            tokens: of this batch.
            rows: its traces.

        Returns:
            Whether to go on: not after another error, with a number that was given, or where a
            trace was alone.
        """
        where = memory_lacking(error)
        if not (self.auto and where and rows > 1):
            return False
        self.tokens, self.halved = max(1, min(self.tokens, tokens) // 2), self.halved + 1
        warnings.warn(
            f"{where} is too small for a batch of {tokens:,} tokens: going on with {self}",
            stacklevel=2,
        )
        return True
