"""Training and evaluation with a head set. Names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl.config import AttnPOConfig
    from rl.questions import load_questions
    from rl.recipe import TrainConfig
    from rl.rescale import Rescaling, step_scales
    from rl.trainer import AttnPOTrainer

_HOMES = {
    "AttnPOConfig": "rl.config",
    "AttnPOTrainer": "rl.trainer",
    "Rescaling": "rl.rescale",
    "TrainConfig": "rl.recipe",
    "load_questions": "rl.questions",
    "step_scales": "rl.rescale",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
