"""Adapters: a LoRA folder is its base model with the adapter merged into the weights.

Whatever looks at the model then sees plain weights. That it is not its base stands in its config
(`adapter_hash`), and with it in the fingerprint that head sets and run files bear.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import DataError, ModelError
from probing.files.reading import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Keys of adapter_config.json that say where and by what it was made, not what it computes.
_VOLATILE = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
}


@dataclass(frozen=True)
class Adapter:
    """An adapter: its folder or hub id, its settings, and the model that it was made for."""

    name: str
    settings: dict[str, Any]
    base: str

    @classmethod
    def at(cls, name: str) -> Adapter | None:
        """The adapter in this folder or under this hub id; None where there is none.

        The base is a hub id or a folder, that seen from here or from the adapter.

        Raises:
            ModelError: its settings cannot be read, or name no base.
        """
        from transformers.utils import find_adapter_config_file

        found = find_adapter_config_file(name)
        if found is None:
            return None
        try:
            settings = read_json(Path(found), "as the settings of an adapter")
        except DataError as error:
            raise ModelError(str(error)) from error
        base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
        if not isinstance(base, str) or not base:
            raise ModelError(f"{found}: names no base model (base_model_name_or_path)")
        beside = Path(found).parent / base
        if not Path(base).is_dir() and beside.is_dir():
            base = str(beside)
        return cls(name, settings, base)

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        """The base with the adapter in its weights; its config bears the adapter's hash.

        Raises:
            ModelError: peft is not installed, or the adapter does not fit the base.
        """
        from probing.models.checkpoint import FAULTS, listed, told

        peft = self._peft()
        try:
            self.mark(model.config)
            wrapped = peft.PeftModelForCausalLM(model, peft.PeftConfig.from_pretrained(self.name))
            found = wrapped.load_adapter(self.name, "default", torch_device="cpu")
            extra, missing = sorted(found.unexpected_keys), sorted(found.missing_keys)
            merged: PreTrainedModel = wrapped.merge_and_unload()
        except FAULTS as error:
            raise ModelError(
                f"{self.name}: this adapter cannot be merged into {self.base}: {told(error)}"
            ) from error
        if missing or extra:
            raise ModelError(
                f"{self.name}: this adapter does not fit {self.base}: {len(missing)} of its "
                f"weights are not in the file, {len(extra)} have no place; first "
                f"{listed(missing + extra)}"
            )
        merged.requires_grad_(True)  # peft froze what it did not train
        return merged

    def mark(self, config: Any) -> None:
        """Let the base's config bear the adapter's hash: SHA-256 of its weights and settings.

        Raises:
            ModelError: peft is not installed.
        """
        import torch

        weights = self._peft().load_peft_weights(self.name, device="cpu")
        deciding = {k: v for k, v in self.settings.items() if k not in _VOLATILE}
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode())
        for key, value in sorted(weights.items()):
            digest.update(key.encode() + value.to(torch.float32).numpy().tobytes())
        config.adapter_hash = f"sha256:{digest.hexdigest()}"

    def _peft(self) -> Any:
        try:
            import peft
        except ImportError as error:
            raise ModelError(
                f"{self.name} is an adapter of {self.base}; to load it: pip install 'kfh[peft]'"
            ) from error
        return peft
