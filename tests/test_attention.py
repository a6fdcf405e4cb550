"""The capture against eager attention, the model's own output, and its claims on memory."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny

from probing.attention import AttentionCapture


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
    torch.testing.assert_close(mass.sum(-1), answer.sum(1)[:, None].expand(3, 16).float())
