"""LoRA: what is trained is an adapter (peft), and what is saved is a folder of it alone.

Such a folder is a model wherever kfh takes one (`probing.models.adapter`): `kfh eval`, `kfh probe`
and `kfh train --model` load its base with the adapter in the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probing.choices import EMBEDDED
from probing.errors import ConfigError
from probing.models.adapter import Adapter
from rl.training.recipe import EVERY_LINEAR, TrainConfig


def lora_options(config: TrainConfig) -> dict[str, Any]:
    """The arguments of the trainer for an adapter; none where all weights are trained.

    Raises:
        ConfigError: peft is not installed, or the model is itself an adapter, on which no other
            could be loaded later.
    """
    if not config.lora_r:
        return {}
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ConfigError("lora_r trains an adapter: pip install 'kfh[peft]'") from error
    if config.model not in EMBEDDED and Path(config.model).is_dir() and Adapter.at(config.model):
        raise ConfigError(
            f"{config.model} is an adapter: train it on (lora_r=0 trains its merged weights), or "
            "save its merged weights and take those as the model of the new one"
        )
    names = [name.strip() for name in config.lora_target_modules.split(",")]
    adapter = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha or 2 * config.lora_r,
        lora_dropout=config.lora_dropout,
        target_modules=EVERY_LINEAR if names == [EVERY_LINEAR] else names,
        exclude_modules=below(config.lora_first_layer),
        task_type="CAUSAL_LM",
    )
    return {"peft_config": adapter}


def below(layer: int) -> str | None:
    """A pattern of the names of what stands in lower layers than this one."""
    # The first number of a name is its layer's; a later one may be an expert's.
    return rf"\D*\.(?:{'|'.join(map(str, range(layer)))})\..*" if layer else None


def name_base(policy: Any, model: str) -> None:
    """Let a policy's adapter say which model it is for: as it was asked for, a path whole."""
    for adapter in getattr(policy, "peft_config", {}).values():
        path = Path(model).expanduser()
        there = model not in EMBEDDED and path.exists()
        adapter.base_model_name_or_path = str(path.resolve()) if there else model
