"""Load a model and its tokenizer from the hub, a folder or a GGUF file; tell models apart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")

# Parts of a config that say how or by what a model was loaded, not what it computes.
_VOLATILE = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_name_or_path",
    "_model_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "output_attentions",
    "quantization_config",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True)
class ModelCard:
    """What identifies a model in head sets and run files."""

    id: str  # hub id, folder or file as given
    type: str  # the config's model_type
    layers: int
    heads: int
    fingerprint: str | None  # of the config; None where only the shape is known (published sets)

    @classmethod
    def of(cls, model_id: str, config: Any) -> ModelCard:
        """The card of a loaded model's config (of its text part, where it has several)."""
        text = config.get_text_config()
        return cls(
            model_id,
            str(text.model_type),
            int(text.num_hidden_layers),
            int(text.num_attention_heads),
            config_fingerprint(config),
        )

    def describe(self) -> str:
        """Id and shape in words, for messages."""
        return f"{self.id} ({self.type}, {self.layers} layers of {self.heads} heads)"


def config_fingerprint(config: Any) -> str:
    """SHA-256 over what of a config decides the computation, as `sha256:<hex>`.

    Precision, attention implementation, paths and library versions are left out, so that the
    same weights loaded in another way keep their fingerprint.
    """

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): clean(v) for k, v in sorted(value.items()) if k not in _VOLATILE}
        if isinstance(value, (list, tuple)):
            return [clean(v) for v in value]
        return value

    text = json.dumps(clean(config.to_dict()), sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def weights_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over a sample of each parameter, as `sha256:<hex>`.

    Sixteen values spread over every parameter: a retrained model differs, and a model of any
    size is read in a moment.
    """
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // 16)][:16].to("cpu", torch.float32)
        digest.update(name.encode() + sample.numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def load_tokenizer(model_id: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which must give character offsets.

    Raises:
        ModelError: it cannot be loaded, or is a slow one without offsets.
    """
    from transformers import AutoTokenizer

    name, options = _source(model_id)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, **options
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"no tokenizer for {model_id}: {error}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {model_id} is a slow one without character offsets; "
            "save a fast one beside the model (tokenizer.json)"
        )
    fast: PreTrainedTokenizerBase = tokenizer
    return fast


def load_model(
    model_id: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model in eval mode.

    Args:
        model_id: hub id, folder, or path of a `.gguf` file.
        device: `auto` (CUDA where there is one, else CPU), or a torch device.
        dtype: `auto` (bfloat16 on CUDA, float32 elsewhere), float32, bfloat16 or float16.
        attention: transformers' attention implementation; None takes the model's default.
        trust_remote_code: run code that comes with the model. Off unless asked for.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    name, options = _source(model_id)
    place, kind = choose_device(device), choose_dtype(dtype, device)
    if attention:
        options["attn_implementation"] = attention
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=kind, trust_remote_code=trust_remote_code, **options
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"{model_id} cannot be loaded: {error}") from error
    model.to(place)  # type: ignore[arg-type]  # transformers wraps `to` without its types
    loaded: PreTrainedModel = model.eval()
    return loaded


def choose_device(device: str) -> torch.device:
    """`auto` is this process's CUDA device where there is one, else the CPU.

    Raises:
        ModelError: torch does not know or have the device.
    """
    import os

    import torch

    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used: {error}") from error
    return place


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere."""
    import torch

    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; choose {', '.join(DTYPES)}")
    if dtype == "auto":
        return torch.bfloat16 if choose_device(device).type == "cuda" else torch.float32
    kind: torch.dtype = getattr(torch, dtype)
    return kind


def _source(model_id: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` wants for this id."""
    path = Path(model_id)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{model_id}: no such file")
        return str(path.parent), {"gguf_file": path.name}
    if model_id.startswith((".", "/", "~")) and not path.expanduser().is_dir():
        raise ModelError(f"{model_id}: no such folder")
    return str(path.expanduser()) if path.expanduser().is_dir() else model_id, {}
