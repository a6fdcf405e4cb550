"""What a model is: its card, its fingerprints, and how far it looks back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


def model_settings(model: PreTrainedModel) -> dict[str, Any]:
    """What of a model decides a result, for going on with it: shape, weights and precision.

    Its id is left out: a folder may be moved, the fingerprints decide.
    """
    card = asdict(ModelCard.of("", model.config))
    del card["id"]
    return {
        "model": card,
        "weights": weights_fingerprint(model),
        "dtype": str(next(model.parameters()).dtype),
    }


def context_limit(config: Any) -> int | None:
    """Tokens that a model was made for, by its config; None where that does not say."""
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


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


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the vocabulary with its ids, as `sha256:<hex>`; kept on the tokenizer."""
    known: str | None = getattr(tokenizer, "_kfh_fingerprint", None)
    if known is None:
        entries = sorted((number, text) for text, number in tokenizer.get_vocab().items())
        known = f"sha256:{hashlib.sha256(repr(entries).encode()).hexdigest()}"
        tokenizer._kfh_fingerprint = known
    return known


def shortest_window(config: Any) -> int | None:
    """Tokens of the shortest window that a layer looks through; None where none has a window."""
    names = ("sliding_window", "attention_chunk_size")
    windows = [getattr(config.get_text_config(), name, None) for name in names]
    return min((int(window) for window in windows if window), default=None)
