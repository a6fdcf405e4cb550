"""The two Triton kernels of `probing.attention.fused`, which says what they are for.

Both keep a block of one side in place and pass over the other: rows of the answer (queries) and
keys. No number of a row is written to memory; nothing is added from two sides, so that the same
input gives the same bits. Scores are scaled by log₂ e, and exponentials are powers of two.

This module alone imports Triton, which comes with torch for CUDA: import it where that is used.
Of Triton's language only what has long been the same in all its versions.
"""

import triton
import triton.language as tl

# Sizes that change with every batch: a kernel compiled for one of them serves all.
SIZES = ["mask_b", "mask_t", "n_heads", "width", "tokens", "group", "window"]


@triton.jit
def _block(at, stride, dims, stride_d, real, DIM: tl.constexpr):
    """Where the vectors of some tokens stand, for their places and dims in any orientation, and
    which of their numbers are there."""
    return at.to(tl.int64) * stride + dims * stride_d, real & (dims < DIM)


@triton.jit
def _add(top, total, scores):
    """Add scores to the running maximum and sum of rows."""
    higher = tl.maximum(top, tl.max(scores, 1))
    powers = tl.sum(tl.exp2(scores - higher[:, None]), 1)
    return higher, total * tl.exp2(top - higher) + powers


@triton.jit(do_not_specialize=SIZES)
def sum_rows(
    q, k, mask, heads, positions, counts, before, parts,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, mask_b, mask_t,
    n_heads, width, tokens, group, window, scale, DIM: tl.constexpr, WIDE: tl.constexpr,
    WINDOWED: tl.constexpr, MASKED: tl.constexpr, SPAN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """log Σ exp of a block of rows over one span of keys: maximum and sum kept as they pass."""
    span, own = tl.program_id(1), tl.program_id(2)
    trace, place = own // n_heads, own % n_heads
    head = tl.load(heads + place)
    row, dims = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
    real = row < tl.load(counts + trace)
    at = tl.load(positions + trace * width + row, mask=real, other=-1)
    q += trace.to(tl.int64) * q_b + head.to(tl.int64) * q_h
    k += trace.to(tl.int64) * k_b + (head // group).to(tl.int64) * k_h
    own_places, own_given = _block(at[:, None], q_t, dims[None, :], q_d, real[:, None], DIM)
    query = tl.load(q + own_places, mask=own_given, other=0.0)
    # Rows see keys up to themselves: below `whole` all of the block do, which needs no comparison.
    first, last = tl.min(tl.where(real, at, tokens), 0), tl.max(at, 0)
    begin, end = span * SPAN, tl.minimum(span * SPAN + SPAN, last + 1)
    whole = begin
    if WINDOWED:
        begin = tl.maximum(begin, tl.maximum(first - window + 1, 0) // KEYS * KEYS)
        whole = begin
    elif not MASKED:
        whole = tl.maximum(begin, tl.minimum(end, first + 1) // KEYS * KEYS)
    top = tl.full([ROWS], -1e30, tl.float32)  # finite, for rows that have seen no key so far
    total = tl.zeros([ROWS], tl.float32)
    for start in range(begin, whole, KEYS):
        n = start + tl.arange(0, KEYS)
        places, given = _block(n[None, :], k_t, dims[:, None], k_d, n[None, :] >= 0, DIM)
        scores = tl.dot(query, tl.load(k + places, mask=given, other=0.0)) * scale
        top, total = _add(top, total, scores)
    for start in range(whole, end, KEYS):
        n = start + tl.arange(0, KEYS)
        places, given = _block(n[None, :], k_t, dims[:, None], k_d, n[None, :] < tokens, DIM)
        scores = tl.dot(query, tl.load(k + places, mask=given, other=0.0)) * scale
        seen = n[None, :] <= at[:, None]
        if WINDOWED:
            seen = seen & (n[None, :] > at[:, None] - window)
        if MASKED:
            shown = tl.load(
                mask + trace.to(tl.int64) * mask_b + n * mask_t, mask=n < tokens, other=0
            )
            seen = seen & (shown != 0)[None, :]
        top, total = _add(top, total, tl.where(seen, scores, float("-inf")))
    parts += (span.to(tl.int64) * tl.num_programs(2) + own) * width
    tl.store(parts + row, (top + tl.log2(total)) * 0.6931471805599453, mask=real)


@triton.jit(do_not_specialize=SIZES)
def sum_columns(
    q, k, mask, heads, positions, counts, before, sums, mass,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, mask_b, mask_t,
    n_heads, width, tokens, group, window, scale, DIM: tl.constexpr, WIDE: tl.constexpr,
    WINDOWED: tl.constexpr, MASKED: tl.constexpr, SPAN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Σ over all rows of exp(score − log Σ exp), for a block of keys, written once."""
    own, low = tl.program_id(1), tl.program_id(0) * KEYS
    trace, place = own // n_heads, own % n_heads
    head = tl.load(heads + place)
    n, dims = low + tl.arange(0, KEYS), tl.arange(0, WIDE)
    q += trace.to(tl.int64) * q_b + head.to(tl.int64) * q_h
    k += trace.to(tl.int64) * k_b + (head // group).to(tl.int64) * k_h
    own_places, own_given = _block(n[:, None], k_t, dims[None, :], k_d, n[:, None] < tokens, DIM)
    key = tl.load(k + own_places, mask=own_given, other=0.0)
    positions += trace * width
    sums += own.to(tl.int64) * width
    # Rows before `begin` see none of the keys; those from `whole` on see all, up to `end`.
    count, before = tl.load(counts + trace), before + trace * (tokens + 1)
    begin, end = tl.load(before + low), count
    whole = tl.load(before + tl.minimum(low + KEYS - 1, tokens))
    whole = begin + (whole - begin + ROWS - 1) // ROWS * ROWS
    if WINDOWED:
        end = tl.load(before + tl.minimum(low + KEYS - 1 + window, tokens))
        whole = end
    total = tl.zeros([KEYS, ROWS], tl.float32)  # summed over rows at the end alone
    for start in range(begin, tl.minimum(whole, end), ROWS):
        row = start + tl.arange(0, ROWS)
        at = tl.load(positions + row, mask=row < count, other=-1)
        norm = tl.load(sums + row, mask=row < count, other=0.0) * 1.4426950408889634
        places, given = _block(at[None, :], q_t, dims[:, None], q_d, at[None, :] >= 0, DIM)
        scores = tl.dot(key, tl.load(q + places, mask=given, other=0.0)) * scale
        seen = n[:, None] <= at[None, :]
        if WINDOWED:
            seen = seen & (n[:, None] > at[None, :] - window)
        total += tl.where(seen, tl.exp2(scores - norm[None, :]), 0.0)
    for start in range(whole, end, ROWS):
        row = start + tl.arange(0, ROWS)
        at = tl.load(positions + row, mask=row < count, other=-1)
        norm = tl.load(sums + row, mask=row < count, other=float("inf")) * 1.4426950408889634
        places, given = _block(at[None, :], q_t, dims[:, None], q_d, at[None, :] >= 0, DIM)
        scores = tl.dot(key, tl.load(q + places, mask=given, other=0.0)) * scale
        total += tl.exp2(scores - norm[None, :])
    found = tl.sum(total, 1)
    if MASKED:
        own_mask = mask + trace.to(tl.int64) * mask_b
        shown = tl.load(own_mask + n * mask_t, mask=n < tokens, other=0)
        found = tl.where(shown != 0, found, 0.0)
    tl.store(mass + own.to(tl.int64) * tokens + n, found, mask=n < tokens)
