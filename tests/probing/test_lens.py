"""TransformerLens as an independent witness of the capture."""

from __future__ import annotations

import pytest
import torch
from families import tiny
from test_attention import batch

from probing.attention.capture import AttentionCapture
from probing.attention.lens import LensCapture
from probing.errors import ModelError


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt_neox"])
def test_hooks_see_what_the_capture_sees(family: str) -> None:
    model = tiny(family)
    ids, answer, _ = batch(model)
    with AttentionCapture(model) as capture:
        ours = capture(ids, answer)
    lens = LensCapture(tiny(family))
    assert lens.heads == capture.heads
    with lens:
        theirs = lens(ids, answer)
    assert (ours - theirs).abs().max() < 1e-4


def test_a_rebuilt_model_is_refused_by_the_capture() -> None:
    """TransformerLens takes the model out of the registry; the capture must not be fooled."""
    model = tiny("qwen2")
    LensCapture(model)
    with pytest.raises(ModelError, match="registry"):
        AttentionCapture(model)


def test_unknown_architecture() -> None:
    class Unknown(torch.nn.Module):
        config = tiny("llama").config

    with pytest.raises(ModelError, match="TransformerLens has no bridge for Unknown"):
        LensCapture(Unknown())
