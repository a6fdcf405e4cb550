"""The capture against eager attention, the model's own output, and its claims on memory."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, overflowing, tiny

from probing.attention.capture import AttentionCapture
from probing.errors import ModelError, NotFiniteError

SINKS = ("gpt_oss", "inkling")


def batch(model, side: str = "right", lengths=(40, 23, 31)):
    """Random traces of unequal length, with answers of unequal length."""
    generator = torch.Generator().manual_seed(3)
    width = max(lengths)
    ids = torch.randint(3, model.config.vocab_size, (len(lengths), width), generator=generator)
    mask = torch.zeros_like(ids)
    answer = torch.zeros_like(ids, dtype=torch.bool)
    for row, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(width - length, width)
        mask[row, place] = 1
        answer[row, place] = torch.arange(length) >= length - 5 - row
    return ids * mask, answer, mask


def eager_mass(family: str, model, ids, answer, mask) -> torch.Tensor:
    """The reference: T × T attention of the eager implementation, answer rows summed."""
    reference = tiny(family, "eager")
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        attentions = reference(ids, attention_mask=mask, output_attentions=True).attentions
    rows = [(a * answer[:, None, :, None]).sum(2) for a in attentions]
    return torch.cat(rows, dim=1)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_mass_is_eager_attention(family: str, side: str) -> None:
    model = tiny(family)
    ids, answer, mask = batch(model, side)
    with AttentionCapture(model, chunk_bytes=1) as capture:
        mass = capture(ids, answer, mask)
    reference = eager_mass(family, model, ids, answer, mask)
    assert mass.shape == reference.shape == (3, 16, 40)
    assert reference.std() > 0.05, "the random model's attention is too flat to prove anything"
    assert (mass - reference).abs().max() < 1e-5
    whole = answer.sum(1)[:, None].expand(3, 16).float()
    if family in SINKS:
        assert (mass.sum(-1) < 0.95 * whole).any(), "the sinks take no part"
    else:
        torch.testing.assert_close(mass.sum(-1), whole)


def test_chosen_heads_in_any_order_stop_early() -> None:
    model = tiny("llama")
    ids, answer, mask = batch(model)
    seen = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: seen.append(1))
    with AttentionCapture(model) as capture:
        everything = capture(ids, answer, mask)
    heads = [(2, 3), (0, 1), (2, 0)]
    capture = AttentionCapture(model, heads)
    seen.clear()
    with capture:
        chosen = capture(ids, answer, mask)
    torch.testing.assert_close(chosen, everything[:, [2 * 4 + 3, 1, 2 * 4]], atol=1e-6, rtol=0)
    assert len(seen) == 2, "layers behind the deepest head must not run"


def test_only_the_trunk_runs_and_nothing_is_t_by_t() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor):
                    self.numbers = max(self.numbers, tensor.numel())
            return result

    model = tiny("qwen2", max_position_embeddings=2048)
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the LM head ran"))
    ids = torch.randint(3, 101, (1, 2048))
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, -256:] = True
    capture = AttentionCapture(model, chunk_bytes=1 << 16)
    with capture, Largest() as largest:
        capture(ids, answer)
    # The mass of a layer and the hidden states are T × something small.
    assert largest.numbers < 2048 * 2048 / 8


def test_chunks_and_padding_without_a_mask_change_nothing() -> None:
    model = tiny("llama")
    ids, answer, mask = batch(model)
    with AttentionCapture(model, chunk_bytes=1) as small:
        with_mask = small(ids, answer, mask)
    with AttentionCapture(model) as large:
        without = large(ids, answer)
    torch.testing.assert_close(with_mask, without, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    """The rows are computed in float32 from half-precision queries and keys."""
    model = tiny(family).to(dtype)
    ids, answer, mask = batch(model)
    with AttentionCapture(model) as capture:
        mass = capture(ids, answer, mask)
    assert mass.dtype == torch.float32
    torch.testing.assert_close(
        mass.sum(-1), answer.sum(1)[:, None].expand(3, 16).float(), atol=1e-4, rtol=0
    )
    reference = eager_mass(family, model.float(), ids, answer, mask)
    assert (mass - reference).abs().mean() < 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_is_cpu(dtype: torch.dtype) -> None:
    model = tiny("qwen2")
    ids, answer, mask = batch(model)
    with AttentionCapture(model) as capture:
        reference = capture(ids, answer, mask)
    model = model.to("cuda", dtype)
    with AttentionCapture(model) as capture:
        mass = capture(ids.cuda(), answer.cuda(), mask.cuda()).cpu()
    assert (mass - reference).abs().mean() < (1e-5 if dtype == torch.float32 else 0.01)


def test_registry_and_mode_are_given_back_and_other_models_left_alone() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

    model, other = tiny("llama"), tiny("qwen2").eval()
    ids, answer, mask = batch(model)
    stock = registry["sdpa"]
    before = other(ids, attention_mask=mask).logits
    model.train()
    with AttentionCapture(model) as capture:
        capture(ids, answer, mask)
        assert torch.equal(other(ids, attention_mask=mask).logits, before)
        assert model(ids, attention_mask=mask).logits.requires_grad
        with pytest.raises(RuntimeError, match="already active"), capture:
            pass
    assert model.training
    assert registry["sdpa"] is stock
    with pytest.raises(RuntimeError, match="within a `with` block"):
        capture(ids, answer, mask)


def test_an_error_inside_gives_the_registry_back() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

    model, stock = tiny("llama"), registry["sdpa"]
    ids, answer, mask = batch(model)
    with pytest.raises(KeyError), AttentionCapture(model):
        raise KeyError
    assert registry["sdpa"] is stock
    with pytest.raises(ValueError, match="padding"), AttentionCapture(model) as capture:
        capture(ids, torch.ones_like(answer), mask)


def test_no_answer_gives_no_mass() -> None:
    model = tiny("llama")
    ids, answer, mask = batch(model)
    answer[1] = False
    with AttentionCapture(model) as capture:
        mass = capture(ids, answer, mask)
    assert mass[1].abs().max() == 0 and mass[0].sum() > 0


def test_heads_that_do_not_exist() -> None:
    model = tiny("llama")
    for heads in ([(4, 0)], [(0, 4)], [(-1, 0)], [], [(1, 1), (1, 1)]):
        with pytest.raises(ModelError):
            AttentionCapture(model, heads)


def from_config(kind: str, **settings: object):
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()


def test_family_outside_the_registry_is_refused() -> None:
    bloom = from_config("bloom", vocab_size=101, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(ModelError, match="does not call the attention registry"):
        AttentionCapture(bloom)


@pytest.mark.parametrize("family", ["gpt_oss", "inkling"])
def test_chosen_heads_with_sinks(family: str) -> None:
    model = tiny(family)
    ids, answer, mask = batch(model)
    heads = [(3, 1), (0, 2), (3, 0)]
    with AttentionCapture(model) as capture:
        everything = capture(ids, answer, mask)
    with AttentionCapture(model, heads) as capture:
        chosen = capture(ids, answer, mask)
    torch.testing.assert_close(chosen, everything[:, [13, 2, 12]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sinks_that_are_left_out_are_found_in_every_precision(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sinks at −3 take so little that the rounding of half precision would hide it."""
    model = tiny("gpt_oss").to(dtype)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(-3.0)
    assert AttentionCapture(model).prove() < 1e-3
    monkeypatch.setattr("probing.attention.rows.sinks_of", lambda options: None)
    with pytest.raises(ModelError, match="is not the one that the model used"):
        AttentionCapture(model)


def test_sinks_that_the_kernel_leaves_out_are_refused() -> None:
    """sdpa takes no sinks: the model's own numbers are then without them, and ours are not."""
    model = tiny("gpt_oss")
    model.config._attn_implementation = "sdpa"
    with pytest.raises(ModelError, match=r"sinks, which sdpa leaves out: load .*eager"):
        AttentionCapture(model)


@pytest.mark.parametrize("family", ["llama", "qwen2-window", "gemma2", "granite", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_proven_as_exactly_as_single(family: str, dtype: torch.dtype) -> None:
    assert AttentionCapture(tiny(family).to(dtype)).prove() < 1e-5


def test_a_small_fault_is_found_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two per cent off in the scaling is less than bfloat16 rounds a row away."""
    from probing.attention.rows import Rows

    right = Rows.__init__

    def wrong(self, *args):
        right(self, *args)
        self.scaling *= 1.02

    model = tiny("llama").to(torch.bfloat16)
    monkeypatch.setattr(Rows, "__init__", wrong)
    with pytest.raises(ModelError, match=r"difference .*, 1e-03 allowed"):
        AttentionCapture(model)


def test_flash_kernels_are_proven_against_eager_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take no float32. A stand-in for one: sdpa that is given the window as an argument."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

    def flash(module, query, key, value, mask, **options):
        assert query.dtype == torch.bfloat16 and mask is None
        places = torch.arange(query.shape[2])
        ahead = places[:, None] - places
        window = options["sliding_window"] or len(places)
        seen = ((ahead >= 0) & (ahead < window))[None, None]
        return registry["sdpa"](module, query, key, value, seen, **options)

    model = tiny("mistral-window").to(torch.bfloat16)
    registry["flash_attention_2"] = flash
    try:
        model.config._attn_implementation = "flash_attention_2"
        ids = torch.randint(3, 101, (1, 40))
        capture = AttentionCapture(model, prove=False)
        assert capture.prove(ids, torch.arange(40)[None] >= 30) < 1e-5
    finally:
        del registry["flash_attention_2"]


def test_overflow_is_told_by_its_layer_and_cause() -> None:
    """In float16 the third layer's attention overflows: no reason to call the capture wrong."""
    model = overflowing()
    with pytest.raises(NotFiniteError, match=r"layer 2 is not finite in float16.*bfloat16"):
        AttentionCapture(model)
    AttentionCapture(model.to(torch.bfloat16))


def test_a_proof_needs_a_row() -> None:
    model = tiny("llama")
    ids, answer, _ = batch(model)
    with pytest.raises(ValueError, match="at least one row"):
        AttentionCapture(model).prove(ids, torch.zeros_like(answer))


def test_flex_attention_is_refused() -> None:
    model = tiny("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ModelError, match="flex_attention"):
        AttentionCapture(model)


def test_proof_notices_a_wrong_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the rows (here: another scaling) cannot pass the proof."""
    from probing.attention.rows import Rows

    right = Rows.__init__

    def wrong(self, *args):
        right(self, *args)
        self.scaling *= 1.05

    model = tiny("llama")
    assert AttentionCapture(model).prove() < 1e-5
    monkeypatch.setattr(Rows, "__init__", wrong)
    with pytest.raises(ModelError, match="layer"):
        AttentionCapture(model)


def test_window_proof_on_a_long_trace() -> None:
    """The proof on a real sequence reaches beyond the window."""
    model = tiny("mistral-window")
    ids, answer, mask = batch(model)
    assert AttentionCapture(model).prove(ids, answer, mask) < 1e-5


def test_mass_moves_with_the_attention() -> None:
    """Making one head uniform moves its mass alone in its layer, to what theory says."""
    model = tiny("llama")
    ids, answer, _ = batch(model)
    attention = model.model.layers[1].self_attn
    with AttentionCapture(model) as capture:
        before = capture(ids, answer)
        with torch.no_grad():
            attention.q_proj.weight[8:16] *= 0  # head 1: uniform attention
        after = capture(ids, answer)
    same = [0, 1, 2, 3, 4, 6, 7]  # layer 0, and the other heads of layer 1
    torch.testing.assert_close(after[:, same], before[:, same])
    positions = answer[0].nonzero()[:, 0]
    uniform = sum((torch.arange(40) <= m) / (m + 1) for m in positions)
    torch.testing.assert_close(after[0, 5], uniform)
