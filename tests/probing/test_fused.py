"""The fused kernels' masses against dense softmax, who may take that way, and its proof.

The kernels run on a GPU, or with Triton installed by its interpreter: TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from families import tiny

from probing.attention import capture as capture_module
from probing.attention import fused
from probing.attention.capture import AttentionCapture
from probing.attention.fused import AnswerRows, Blocks, fused_mass, fused_rows, mass_difference
from probing.attention.passing import PassingSequences
from probing.attention.rows import Rows, answer_mass
from probing.errors import ModelError
from probing.models.front import AttentionCall, Workspace, fusible

TRITON = find_spec("triton") is not None
CUDA = TRITON and torch.cuda.is_available()
INTERPRETED = TRITON and os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA and not INTERPRETED else "cpu"
kernels = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="needs CUDA, or an interpreter")
# The interpreter multiplies the bits of bfloat16 as whole numbers.
HALF = [torch.float16] if INTERPRETED else [torch.bfloat16, torch.float16]
TINY = Blocks(16, 16, 4, 2, 32)
FLASH = "flash_attention_2"


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU counts as a GPU, where nothing is split in half precision."""
    monkeypatch.setattr(capture_module, "fusible", lambda query: True)
    monkeypatch.setattr(capture_module, "split_at", lambda *given: None)


def call_of(
    dim: int = 16,
    tokens: int = 70,
    kv: int = 2,
    dtype: torch.dtype = HALF[0],
    name: str = "sdpa",
    mask: torch.Tensor | None = None,
    **options: object,
) -> AttentionCall:
    """A layer's call: two traces, four heads, strided as a model gives them."""
    generator = torch.Generator().manual_seed(dim + tokens)
    query, key = (
        torch.randn((2, tokens, heads, dim), generator=generator).mul(1.5).to(dtype).to(DEVICE)
        for heads in (4, kv)
    )
    mask = mask if mask is None else mask.to(DEVICE)
    given = {"scaling": 0.3, **options}
    module = torch.nn.Identity()
    return AttentionCall(name, module, query.transpose(1, 2), key.transpose(1, 2), mask, given)


def dense(call: AttentionCall, answers: list[torch.Tensor]) -> torch.Tensor:
    """The reference: T × T softmax in float64, answer rows summed."""
    query, key = call.query.cpu().double(), call.key.cpu().double()
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.mT * call.options["scaling"]
    n = torch.arange(query.shape[2])
    seen = n <= n[:, None]
    if call.options.get("sliding_window"):
        seen = seen & (n > n[:, None] - call.options["sliding_window"])
    seen = seen.expand(2, 1, -1, -1)
    if call.mask is not None:
        seen = seen & call.mask.cpu().bool()[:, None, None]
    rows = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    summed = [own[:, at].sum(1) for own, at in zip(rows, answers, strict=True)]
    return torch.stack(summed).float()


LAST, FEW, NONE = torch.arange(40, 70), torch.tensor([0, 3, 17, 18, 41, 66]), torch.arange(0)


@kernels
@pytest.mark.parametrize(
    ("dim", "kv", "heads", "answers"),
    [
        (16, 2, [0, 1, 2, 3], [LAST, FEW]),  # grouped queries; two lengths, one scattered
        (16, 4, [3, 1], [FEW, torch.arange(70)]),  # chosen heads; an answer of all tokens
        (16, 1, [2], [NONE, LAST]),  # multi-query; a trace without answer
        (64, 2, [0, 3], [LAST, LAST[:20]]),
        (80, 2, [0, 1, 2, 3], [FEW, torch.tensor([69])]),  # padded to 128
    ],
)
@pytest.mark.parametrize("dtype", HALF)
def test_masses_are_those_of_dense_softmax(dim, kv, heads, answers, dtype) -> None:
    call = call_of(dim, kv=kv, dtype=dtype)
    plan = AnswerRows(answers, 70)
    expected = dense(call, answers)[:, heads]
    assert expected.max() > 3 * expected.mean(), "too flat to prove anything"
    # Blocks of many and of one; float32 sums of exact products.
    for blocks in (TINY, TINY._replace(held=32), None):
        mass = fused_mass(call, fused_rows(call), heads, plan, blocks).cpu()
        torch.testing.assert_close(mass, expected, atol=2e-6, rtol=2e-5)
    again = fused_mass(call, fused_rows(call), heads, plan).cpu()
    assert torch.equal(again, mass), "the same to the bit"


@kernels
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("window", [None, 9, 40])
def test_masks_of_tokens_and_windows(side: str, window: int | None) -> None:
    mask = torch.ones(2, 70, dtype=torch.bool if window else torch.long)
    mask[1, : 35 if side == "left" else 0] = 0
    mask[0, 62 if side == "right" else 70 :] = 0
    answers = [torch.arange(50, 62), torch.tensor([35, 36, 60, 69])]
    call = call_of(name=FLASH, mask=mask, sliding_window=window)
    mass = fused_mass(call, fused_rows(call), [0, 1, 2, 3], AnswerRows(answers, 70), TINY).cpu()
    torch.testing.assert_close(mass, dense(call, answers), atol=2e-6, rtol=2e-5)


@kernels
def test_what_is_not_finite_stays_so() -> None:
    call = call_of()
    call.key[0, 0, 5] = float("nan")
    mass = fused_mass(call, fused_rows(call), [0, 2], AnswerRows([LAST, LAST], 70), TINY).cpu()
    assert mass[0, 0].isnan().any() and mass[1].isfinite().all() and mass[0, 1].isfinite().all()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 101, (2, 40), generator=generator)
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[0, 30:], answer[1, 12:20] = True, True
    return ids.to(DEVICE), answer.to(DEVICE)


@kernels
def test_the_capture_is_the_same_by_both_ways(request: pytest.FixtureRequest) -> None:
    """A whole model, its proof included; on a GPU nothing is patched."""
    if DEVICE == "cpu":
        request.getfixturevalue("everywhere")
    model, heads = tiny("llama", head_dim=16).to(DEVICE, HALF[0]), [(2, 3), (0, 1), (2, 0)]
    for chosen in (None, heads):
        capture = AttentionCapture(model, chosen)
        assert capture.fused.refused is None
        assert capture.fused.layers == ({0, 1, 2, 3} if chosen is None else {0, 2})
        with capture:
            mass = capture(*batch())
            capture.fused.refused = "to compare"
            present = capture(*batch())
        assert not torch.equal(mass, present), "one way was taken twice"
        assert mass_difference(mass, present) < 1e-4


def test_the_rule_names_what_the_kernels_cannot_do() -> None:
    def takes(**given: object) -> bool:
        return fused_rows(call_of(**given)) is not None

    by_query, by_token = torch.ones(2, 1, 70, 70).tril().bool(), torch.ones(2, 70)
    assert all(takes(dim=dim) for dim in (16, 64, 80, 96, 128, 256))
    assert not any(takes(dim=dim) for dim in (8, 20, 72, 272))
    assert takes(mask=by_token) and not takes(mask=by_query)
    assert takes(name=FLASH, sliding_window=9) and takes(softcap=None)
    for options in (
        {"softcap": 2.0},
        {"s_aux": torch.zeros(4)},
        {"sinks": torch.zeros(2, 4, 70, 1)},
        {"position_bias": torch.zeros(1, 4, 70, 70)},
    ):
        assert not takes(**options), options
    call = call_of()
    assert fused_rows(call._replace(query=call.query[:, :, 1:])) is None, "a cache"
    with pytest.raises(ModelError, match="looks ahead"):
        takes(is_causal=False)


def test_half_precision_on_a_gpu_alone() -> None:
    query = call_of(dtype=torch.bfloat16).query
    assert fusible(query) == (DEVICE == "cuda")
    assert not fusible(query.float()) and not fusible(query.cpu())


def by_rows(call: AttentionCall, rows: Rows, heads: list[int], answers: AnswerRows) -> torch.Tensor:
    """In place of the kernels: it needs no Triton."""
    return answer_mass(Rows(call, heads, Workspace()), answers.answers, answers.tokens)


def failing(error: Exception):
    def kernel(*given: object) -> torch.Tensor:
        raise error

    return kernel


def captured(monkeypatch: pytest.MonkeyPatch, kernel) -> tuple[AttentionCapture, torch.Tensor]:
    """Proven, and run, with this in place of the kernels."""
    monkeypatch.setattr(fused, "fused_mass", kernel)
    model = tiny("llama", head_dim=16).to(DEVICE, HALF[0])
    with AttentionCapture(model) as capture:
        return capture, capture(*batch())


def test_only_what_holds_is_used(everywhere, monkeypatch: pytest.MonkeyPatch) -> None:
    capture, mass = captured(monkeypatch, lambda *given: by_rows(*given) * 1.001)
    assert capture.fused.refused is None and capture.fused.layers == {0, 1, 2, 3}
    assert all(5e-4 < found < 1e-3 for found in capture.fused.differences.values())
    for kernel, why in (
        (lambda *given: by_rows(*given) * 1.02, "layer 0: they differ by 0.0"),
        (lambda *given: by_rows(*given) * float("nan"), "layer 0: they differ by nan"),
        (failing(RuntimeError("no C compiler")), "RuntimeError: no C compiler"),
        (failing(ImportError("no triton")), "ImportError: no triton"),
    ):
        capture, present = captured(monkeypatch, kernel)
        assert why in capture.fused.refused and not capture.fused.layers
        torch.testing.assert_close(present * 1.001, mass)
    with pytest.raises(torch.OutOfMemoryError):
        captured(monkeypatch, failing(torch.OutOfMemoryError("too much")))


def test_longer_passes_are_proven_too(everywhere, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty tokens are in one block, which proves nothing for several, nor for several spans."""
    capture, _ = captured(monkeypatch, by_rows)
    proven = [0]
    with capture:
        for reaches in ((32, 64), (16, 32)):
            assert sorted({reach for _, reach, _ in capture.fused.differences}) == proven
            monkeypatch.setattr(fused, "REACHES", reaches)
            capture(*batch())
            proven.append(len(proven))
        assert sorted({reach for _, reach, _ in capture.fused.differences}) == [0, 1, 2]
        monkeypatch.setattr(fused, "mass_difference", failing(AssertionError("proven twice")))
        capture(*batch())


def test_passes_of_another_s_loop_take_it_too(everywhere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "fused_mass", by_rows)
    model, (ids, answer) = tiny("llama", head_dim=16).to(DEVICE, HALF[0]), batch()
    passing = PassingSequences(model, [(1, 2), (3, 0)])
    wanted = {PassingSequences.key(ids[0].cpu()): answer[0].cpu().numpy()}
    with passing.over(wanted) as masses, torch.no_grad():
        model(input_ids=ids)
    assert len(masses) == 1 and passing.fused.layers == {1, 3}
