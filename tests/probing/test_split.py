"""The split capture: the kernel gets the queries before the answer, rows × values give the rest.

Held against the present way, in which the model's own kernel gives every query.
"""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny

from probing.attention.capture import AttentionCapture
from probing.models.front import AttentionCall, Workspace, own_output
from probing.models.split import SplitOutput, split_at, split_start

LAYERS = {0, 1, 2, 3}
# Layers that split 40 tokens: none where a soft-cap, sinks, a position bias or a window stands.
SPLIT = {
    **dict.fromkeys(FAMILIES, LAYERS),
    "qwen2-window": {0, 1},
    **{
        name: set() for name in ("mistral-window", "phi3", "gemma2", "gemma3", "gpt_oss", "inkling")
    },
}


def batch(starts=(30, 30), ends=(40, 40), width: int = 40):
    """Random traces; tokens from start to end answer."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 101, (len(starts), width), generator=generator)
    places = torch.arange(width)
    answer = torch.stack([(places >= a) & (places < b) for a, b in zip(starts, ends, strict=True)])
    return ids, answer


def masses_and_hidden(capture, ids, answer, mask=None):
    """Masses, the last hidden state, and the layers that were split."""
    capture.early_exit = False
    hidden, cuts = [], []
    hook = capture.trunk.register_forward_hook(lambda *given: hidden.append(given[2][0]))
    right = SplitOutput.__init__

    def counted(self, call, *rest):
        cuts.append(call.module.layer_idx)
        right(self, call, *rest)

    with pytest.MonkeyPatch.context() as patch, capture:
        patch.setattr(SplitOutput, "__init__", counted)
        mass = capture(ids, answer, mask)
    hook.remove()
    return mass, hidden[0], set(cuts)


def both_ways(model, ids, answer, mask=None, heads=None, **options):
    """Of a capture with and without split: masses, hidden states; and the layers split."""
    capture = AttentionCapture(model, heads, **options)
    mass, hidden, cuts = masses_and_hidden(capture, ids, answer, mask)
    capture.split = frozenset()
    present, plain, none = masses_and_hidden(capture, ids, answer, mask)
    assert not none
    return (mass, present), (hidden, plain), cuts


def agree(masses, hiddens) -> None:
    torch.testing.assert_close(*masses, atol=1e-6, rtol=1e-6)
    scale = hiddens[1].abs().max()
    torch.testing.assert_close(hiddens[0] / scale, hiddens[1] / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", [None, "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_the_present_way(family: str, kernel: str | None) -> None:
    model = tiny(family, kernel)
    masses, hiddens, cuts = both_ways(model, *batch(), chunk_bytes=4096)
    agree(masses, hiddens)
    assert cuts == SPLIT[family]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "llama-multi-query"])
def test_logits_are_those_of_the_model(family: str) -> None:
    model = tiny(family)
    ids, answer = batch((30, 27), (40, 38))
    _, (hidden, _), cuts = both_ways(model, ids, answer)
    assert cuts == LAYERS
    with torch.no_grad():
        logits = model(ids).logits
        ours = model.get_output_embeddings()(hidden)
    torch.testing.assert_close(ours / logits.std(), logits / logits.std(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("starts", "ends"),
    [
        ((30, 26), (40, 36)),  # from the earliest on; the second is padded on the right
        ((30, 0), (40, 0)),  # a trace without answer
        ((1, 1), (40, 40)),  # one query for the kernel
        ((39, 39), (40, 40)),  # one row
    ],
)
def test_answers_that_split(starts, ends) -> None:
    masses, hiddens, cuts = both_ways(tiny("llama"), *batch(starts, ends))
    agree(masses, hiddens)
    assert cuts == LAYERS


def in_two(answer):
    answer[0, 33] = False


def whole(answer):
    answer[:] = True


def scattered(answer):
    answer[0, 5] = True


@pytest.mark.parametrize("change", [in_two, whole, scattered, torch.Tensor.zero_])
def test_answers_that_do_not_split(change) -> None:
    """No suffix (values, boxed); nothing in front of it; none at all."""
    ids, answer = batch()
    change(answer)
    masses, hiddens, cuts = both_ways(tiny("llama"), ids, answer)
    agree(masses, hiddens)
    assert not cuts


def test_where_most_rows_would_be_for_nothing_the_kernel_does_them() -> None:
    """Half of the rows from the earliest answer on must be wanted."""
    ids, answer = batch((20, 30), (40, 40))
    assert split_start([row.nonzero()[:, 0] for row in answer], 40) == (20, 30 / 40)
    assert both_ways(tiny("llama"), ids, answer)[2] == LAYERS
    assert both_ways(tiny("llama"), *batch((10, 36), (40, 37)))[2] == LAYERS
    assert not both_ways(tiny("llama"), *batch((10, 36), (40, 37), 80))[2]


def test_a_mask_keeps_the_kernel_whole_but_for_eager_s_own() -> None:
    ids, answer = batch((30, 26), (40, 36))
    mask = torch.ones_like(ids)
    mask[1, 36:] = 0
    for kernel, layers in (("sdpa", set()), ("eager", LAYERS)):
        masses, (hidden, plain), cuts = both_ways(tiny("llama", kernel), ids, answer, mask)
        agree(masses, (hidden[mask.bool()], plain[mask.bool()]))
        assert cuts == layers
    mask = mask.flip(1)  # padding on the left
    ids, answer = batch()
    assert not both_ways(tiny("llama", "eager"), ids, answer, mask)[2]


def test_chosen_heads_split_where_they_are_half_of_a_layer() -> None:
    heads = [(3, 1), (1, 2), (1, 0), (2, 3)]
    masses, hiddens, cuts = both_ways(tiny("llama"), *batch(), heads=heads)
    agree(masses, hiddens)
    assert cuts == {1}


def test_the_deepest_layer_gives_no_output() -> None:
    """It is left before its kernel runs, as before."""
    ids, answer = batch()
    model = tiny("llama")
    capture = AttentionCapture(model)
    with pytest.MonkeyPatch.context() as patch, capture:
        calls = []
        right = SplitOutput.__init__
        patch.setattr(SplitOutput, "__init__", lambda *a: (calls.append(1), right(*a))[1])
        capture(ids, answer)
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Rows and their products with the values in float32, rounded once."""
    (mass, present), (hidden, plain), cuts = both_ways(tiny("qwen3").to(dtype), *batch())
    assert cuts == LAYERS and hidden.dtype == dtype
    assert (mass - present).abs().mean() < 0.02
    reference = both_ways(tiny("qwen3").to(dtype).float(), *batch())[1][1]
    ours, theirs = ((x.float() - reference).abs().mean() for x in (hidden, plain))
    assert ours < 1.1 * theirs, "further from float32 than the kernel is"


def call_of(
    kernel: str = "sdpa", tokens: int = 12, **options
) -> tuple[AttentionCall, torch.Tensor]:
    """A layer's call, with grouped queries, as sdpa gets it; and its values."""
    module = tiny("llama", kernel).model.layers[0].self_attn
    generator, tokens = torch.Generator().manual_seed(0), 12
    query, key, value = (
        torch.randn((2, heads, tokens, 8), generator=generator) for heads in (4, 2, 2)
    )
    mask = torch.full((tokens, tokens), torch.finfo(torch.float32).min).triu(1)[None, None]
    options = {"scaling": 0.3, "dropout": 0.0, **options}
    given = mask if kernel == "eager" else None
    return AttentionCall(kernel, module, query, key, given, options), value


@torch.no_grad()
def test_the_rule_names_what_the_kernel_needs_whole() -> None:
    start = (8, 1.0)
    call, _ = call_of()
    ids = torch.arange(12)[None]
    assert split_at(call, start, 4) == 8
    assert split_at(call, start, 2) == 8  # of four heads
    assert split_at(call, (8, 0.5), 4) == 8  # of the rows
    kept = {"position_ids": ids, "sliding_window": 12, "softcap": None}
    assert split_at(call._replace(options=kept), start, 4) == 8
    for options in (
        {"softcap": 2.0},
        {"s_aux": torch.zeros(4)},
        {"sinks": torch.zeros(2, 4, 12, 1)},
        {"position_bias": torch.zeros(1, 4, 12, 12)},
        {"sliding_window": 11},
        {"cu_seq_lens_q": torch.tensor([0, 12])},
    ):
        assert split_at(call._replace(options=options), start, 4) is None, options
    assert split_at(call, None, 4) is None
    assert split_at(call, start, 1) is None
    assert split_at(call, (8, 0.5), 3) is None
    assert split_at(call._replace(implementation="flash_attention_2"), start, 4) is None
    assert split_at(call._replace(mask=torch.ones(2, 1, 12, 12).tril().bool()), start, 4) is None
    with torch.enable_grad():
        assert split_at(call, start, 4) is None, "the rows carry no gradient"


@torch.no_grad()
def test_an_eager_mask_must_hide_what_comes_later() -> None:
    call, _ = call_of("eager")
    assert split_at(call, (8, 1.0), 4) == 8
    for mask in (call.mask.clone(), ~call.mask.bool()):
        mask[0, 0, 3, 9] = 1
        assert split_at(call._replace(mask=mask), (8, 1.0), 4) is None
    assert split_at(call._replace(mask=~call.mask.bool()), (8, 1.0), 4) == 8
    assert split_at(call._replace(mask=None), (8, 1.0), 4) is None, "it looks ahead"


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_kernel_s_part_is_that_of_the_whole(kernel: str) -> None:
    """The queries before the cut get their keys alone: causal kernels align at the first key."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

    call, value = call_of(kernel, position_ids=torch.arange(12)[None])
    stock = registry["sdpa"] if kernel == "sdpa" else None
    whole = own_output(call, value, stock, 1 << 20)
    for cut in (1, 5, 11):
        split = SplitOutput(call, value, cut, stock, Workspace())
        assert split.output.shape == whole.shape
        torch.testing.assert_close(split.output[:, :cut], whole[:, :cut], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_split_that_is_wrong_is_not_used(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof finds it, and the present way stays."""
    model = tiny("llama").to(dtype)
    assert AttentionCapture(model).split == LAYERS
    assert AttentionCapture(model, prove=False).split == frozenset()
    right = SplitOutput.__init__

    def wrong(self, *given):
        right(self, *given)
        self.output[:, self.cut - 1] = 0

    monkeypatch.setattr(SplitOutput, "__init__", wrong)
    assert AttentionCapture(model).split == frozenset()


def test_what_a_longer_proof_splits_is_proven_too() -> None:
    """Within the window all layers may be split, beyond it none that has one."""
    model = tiny("mistral-window")
    ids, answer = batch((5, 5), (8, 8), 8)
    capture = AttentionCapture(model)
    assert capture.split == frozenset()
    capture.prove(ids, answer)
    assert capture.split == LAYERS
    capture.prove(*batch())
    assert capture.split == LAYERS
    assert not masses_and_hidden(capture, *batch())[2]
    assert masses_and_hidden(capture, ids, answer)[2] == LAYERS
