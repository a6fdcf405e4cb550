"""What others call a head or a step by: published formulas, on attention as it stands in rows.

Each is a function of arrays with its source. Where a paper speaks of tokens and we of steps, or
leaves a constant open, the docstring says what is our reading. "Equal to the published code" means
that the authors' own function gave the same for the same random input (docs/LOG.md); WAAD and FAI,
whose code was not found, follow the paper's equations. `probing.types.rows` gives them what they
need without keeping a T × T matrix.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

NEAR = 4  # steps: closer ones are left out (Thought Anchors; Δ of AttnRL)
WINDOW = 10  # tokens of a windowed distance (arXiv 2510.13554)
FUTURE = (10, 50)  # tokens later whose attention is influence (the same; (10, 100) in its v2)
SHARE = 0.3  # of the heads are local, as many global (the same)


def vertical_scores(
    attention: Float[np.ndarray, "*head step step"], near: int = NEAR, *, ranked: bool = False
) -> Float[np.ndarray, "*head step"]:
    """How much later steps look at each step (Thought Anchors, arXiv 2506.19143).

    Equal to the published code (`get_vertical_scores`), plain and by rank.

        v_j = mean over i ≥ j + near of M_ij

    Args:
        attention: M_ij, mean attention from a token of step i to one of step j.
        near: steps closer than this are left out.
        ranked: take the place of M_ij among the steps j that step i may count, from 0 to 1, in its
            place: their control for position, since early rows have fewer steps to look at.

    Returns:
        Attention a token (no unit); not a number for the last `near` steps.

    Example:
        >>> m = np.array([[0.5, 0, 0], [0.25, 0.5, 0], [0.125, 0.25, 0.5]])
        >>> vertical_scores(m, near=1).tolist()[:2], vertical_scores(m, 1, ranked=True).tolist()[:2]
        ([0.1875, 0.25], [0.75, 1.0])
    """
    steps = attention.shape[-1]
    far = np.arange(steps)[:, None] - np.arange(steps) >= near
    seen = np.where(far, attention, np.nan)
    if ranked:
        from scipy.stats import rankdata

        counted = np.maximum(far.sum(axis=1), 1)[:, None]
        seen = rankdata(seen, axis=-1, nan_policy="omit") / counted
        seen = np.where(far, seen, np.nan)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(far, seen, 0.0).sum(axis=-2) / far.sum(axis=0))


def receiver_score(vertical: Float[np.ndarray, "*head step"]) -> Float[np.ndarray, "*head"]:
    """How far a few steps stand out in `vertical_scores`: their Fisher kurtosis (the same paper).

        m_4 / m_2² − 3 over the steps that have a score

    Not a number where fewer than two have one, or all are alike.

    Example: one of five stands out.
        >>> round(float(receiver_score(np.array([0.0, 0.0, 0.0, 0.0, 1.0]))), 4)
        0.25
    """
    known = ~np.isnan(vertical)
    count = known.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, vertical, 0.0).sum(axis=-1) / count
        off = np.where(known, vertical - mean[..., None], 0.0)
        second, fourth = ((off**power).sum(axis=-1) / count for power in (2, 4))
        flat = second <= (1e-7 * np.abs(mean)) ** 2  # rounding is no difference
        return np.asarray(np.where(flat, np.nan, fourth / second**2 - 3))


def forward_influence(
    attention: Float[np.ndarray, "head step step"], near: int = NEAR
) -> Float[np.ndarray, "step"]:
    """FCI: what later steps take from a step by the head that takes most (AttnRL, 2509.26628).

        FCI_k = max over heads of Σ_{j ≥ k + near} α_jk

    Equal to the published code, which then sets the first steps and those of the answer to 0; here
    they keep what they have.

    Args:
        attention: α_jk, mean attention from step j to step k.
        near: Δ.

    Example:
        >>> one, other = np.zeros((2, 3, 3))
        >>> one[2, 0], other[1, 0], other[2, 0], other[2, 1] = 0.5, 0.25, 0.125, 0.25
        >>> tuple(forward_influence(np.stack([one, other]), near=1)[:2].tolist())
        (0.5, 0.25)
    """
    steps = attention.shape[-1]
    far = np.arange(steps)[:, None] - np.arange(steps) >= near
    return np.asarray(np.where(far, attention, 0.0).sum(axis=-2).max(axis=0))


def copied(
    looked_at: Int[np.ndarray, "*head answer"],
    ids: Int[np.ndarray, "token"],
    written: Int[np.ndarray, "answer"],
    needle: Bool[np.ndarray, "token"],
) -> Bool[np.ndarray, "*head answer"]:
    """Where a head looks most at the very token that is written (Retrieval Head, 2404.15574).

    Its mean over the answer is the retrieval score: the share of written tokens that the head
    copies from the needle. Our adaptation: the needle is the steps, the written tokens are F. The
    published code (`retrieval_calculate`) counts the same tokens and divides by those of the
    needle, which are written once each.

    Args:
        looked_at: for each written token the key of greatest attention when it was written: in
            the row of the token before it.
        ids: of all tokens.
        written: places of the written tokens.
        needle: the tokens that it may be copied from.

    Example: the answer 7, 9 is written behind 7 5 8; the first of it is copied.
        >>> ids, steps = np.array([7, 5, 8, 7, 9]), np.array([True, True, False, False, False])
        >>> tuple(map(bool, copied(np.array([0, 1]), ids, np.array([3, 4]), steps)))
        (True, False)
    """
    return np.asarray(needle[looked_at] & (ids[looked_at] == ids[written]))


def pattern_score(
    attention: Float[np.ndarray, "*head query key"], pattern: Bool[np.ndarray, "query key"]
) -> Float[np.ndarray, "*head"]:
    """Share of attention on a pattern, Σ A∘P / ΣA (the head detector of TransformerLens).

    Example:
        >>> float(pattern_score(np.array([[1.0, 0.0], [0.75, 0.25]]), previous_token(2)))
        0.375
    """
    return np.asarray((attention * pattern).sum((-2, -1)) / attention.sum((-2, -1)))


def previous_token(tokens: int) -> Bool[np.ndarray, "query key"]:
    """The pattern of a head that looks at the token before."""
    return np.asarray(np.eye(tokens, k=-1, dtype=bool))


def induction(tokens: int, period: int) -> Bool[np.ndarray, "query key"]:
    """The pattern of a head that looks at the token behind the last one like this one.

    Args:
        tokens: of a sequence that repeats itself.
        period: after which it does. At most (tokens − period) / tokens of a head's attention can
            lie on the pattern.
    """
    return np.asarray(np.eye(tokens, k=1 - period, dtype=bool))


def windowed_distance(
    rows: Float[np.ndarray, "*head query key"], at: Int[np.ndarray, "query"], window: int = WINDOW
) -> Float[np.ndarray, "*head query"]:
    """WAAD of a token: how far back it looks, counted up to a window (arXiv 2510.13554).

        WAAD_m = Σ_n a_{m→n} min(m − n, window)

    Its equation 9, there of the mean attention of local heads (equation 8, `focused`), which is the
    mean of these.

    Example:
        >>> float(windowed_distance(np.array([[0.5, 0.25, 0.25]]), np.array([2]), window=1)[0])
        0.75
    """
    back = np.clip(at[:, None] - np.arange(rows.shape[-1]), 0, window)
    return np.asarray((rows * back).sum(axis=-1))


def future_influence(
    rows: Float[np.ndarray, "*head query key"],
    at: Int[np.ndarray, "query"],
    future: tuple[int, int] = FUTURE,
) -> Float[np.ndarray, "*head key"]:
    """FAI of a token: mean attention from the tokens that stand so far behind it (the same).

        FAI_n = mean over m with first ≤ m − n ≤ last of a_{m→n}

    0 where no row does. Its equation 10, there of the mean attention of global heads. From 10 to 50
    tokens later in the paper's first version, to 100 in its second, to the end in its analysis.

    Example:
        >>> rows = np.array([[1.0, 0.0], [0.75, 0.25]])
        >>> tuple(future_influence(rows, np.array([0, 1]), (1, 2)).tolist())
        (0.75, 0.0)
    """
    back = at[:, None] - np.arange(rows.shape[-1])
    window = (back >= future[0]) & (back <= future[1])
    return np.asarray((rows * window).sum(axis=-2) / np.maximum(window.sum(axis=0), 1))


def focused(
    distance: Float[np.ndarray, "head"], share: float = SHARE
) -> tuple[Int[np.ndarray, "local"], Int[np.ndarray, "global"]]:
    """The local heads and the global ones: least and greatest mean distance looked back (the same).

    Of a response's rows, by its equation 7. In training the paper reads five layers of the middle
    third; here, as in its analysis, it is all of them.

    Example:
        >>> local, distant = focused(np.array([3.0, 1.0, 9.0]))
        >>> local.tolist(), distant.tolist()
        ([1], [2])
    """
    order = np.argsort(distance, kind="stable")
    count = max(1, round(share * len(order)))
    return order[:count], order[-count:]


def calibrated(
    scores: Float[np.ndarray, "head step"],
    tokens: int,
    null: Float[np.ndarray, "head step"],
    null_tokens: int,
) -> Float[np.ndarray, "head step"]:
    """S_k without what any answer would look at: less the score by an answer without content.

        S_k / |F| − S_k(null) / |null|

    By an answer's token each, so that they are of one size (QRHead, arXiv 2506.09944, calibrates
    the attention of a query to each token of a document so, by the query "N/A").

    Example:
        >>> tuple(calibrated(np.array([[1.0, 0.5]]), 2, np.array([[0.25, 0.25]]), 1)[0].tolist())
        (0.25, 0.0)
    """
    return np.asarray(scores / tokens - null / null_tokens)


def query_score(
    scores: Float[np.ndarray, "head step"],
    tokens: Int[np.ndarray, "step"],
    essential: Bool[np.ndarray, "step"],
) -> Float[np.ndarray, "head"]:
    """QR score: attention of an answer's token on the essential steps (QRHead, 2506.09944).

    Our adaptation: the query is the answer, the documents are steps, the right ones essential. The
    published code also leaves out tokens more than two deviations below their document's mean;
    with that rule taken away the sums are equal.

    Args:
        scores: by an answer's token and a step's token, see `calibrated`.
        tokens: |s_k|.
        essential: of each step.

    Example:
        >>> scores = np.array([[0.25, 0.5]])
        >>> float(query_score(scores, np.array([2, 1]), np.array([True, False]))[0])
        0.5
    """
    return np.asarray((scores * tokens)[:, essential].sum(axis=1))
