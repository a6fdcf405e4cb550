"""What a model is: its card, its fingerprints, and how far it looks back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from probing.errors import DataError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


NEAR = 4  # rows that a table of positions may have more or fewer than the config says

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
        """The card of a loaded model's config (of its text part, where it has several).

        Raises:
            ModelError: it has no attention heads.
        """
        text = config.get_text_config()
        return cls(
            model_id,
            str(text.model_type),
            int(text.num_hidden_layers),
            head_count(config, model_id or "this model"),
            config_fingerprint(config),
        )

    def describe(self) -> str:
        """Id and shape in words, for messages."""
        return f"{self.id} ({self.type}, {self.layers} layers of {self.heads} heads)"


def model_settings(model: PreTrainedModel) -> dict[str, Any]:
    """What of a model decides a result, for going on with it: shape, weights and precision.

    Its id is left out: a folder may be moved, the fingerprints decide.
    """
    return {
        "model": shape_settings(model.config),
        "weights": weights_fingerprint(model),
        "dtype": str(next(model.parameters()).dtype),
    }


def shape_settings(config: Any) -> dict[str, Any]:
    """What of a model's config decides a result: its card without the id."""
    card = asdict(ModelCard.of("", config))
    del card["id"]
    return card


def head_count(config: Any, name: str) -> int:
    """Attention heads of a layer.

    Args:
        config: of a model.
        name: what a message calls it.

    Raises:
        ModelError: it has none (Mamba, RWKV), or not the same number in every layer.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if isinstance(heads, (list, tuple)) and len(set(heads)) == 1:
        heads = heads[0]
    if isinstance(heads, (list, tuple)):
        raise ModelError(f"{name}: its layers have different numbers of heads ({set(heads)})")
    if not heads:
        raise ModelError(
            f"{name} has no attention heads to look at: a {text.model_type} model has no "
            "num_attention_heads in its config. Take a transformer"
        )
    return int(heads)


def context_limit(config: Any) -> int | None:
    """Tokens that a model was made for, by its config; None where that does not say."""
    text = config.get_text_config()
    limit: int | None = getattr(text, "max_position_embeddings", getattr(text, "max_seq_len", None))
    return limit


def position_limit(model: PreTrainedModel) -> int | None:
    """Tokens that a model can take at all; None where positions come from no table (RoPE).

    A table of positions, learned or made (GPT-2, OPT, GPT-J), has a row for each and no more.
    """
    limit = context_limit(model.config)
    if limit is None:
        return None
    if hasattr(model.config.get_text_config(), "max_seq_len"):  # MPT's slopes are made for it
        return limit
    rows = []
    for name, module in model.named_modules():
        table = name.rpartition(".")[2]
        if "num_embeddings" in vars(module) and ("pos" in table or table == "wpe"):
            before = getattr(module, "offset", None) or (module.padding_idx or -1) + 1
            rows.append(int(module.num_embeddings) - int(before))
    for name, buffer in model.named_buffers():
        if "pos" in name.rpartition(".")[2] and buffer.is_floating_point():
            rows.append(len(buffer))
    # Tables of another size are of other things: patches of an image, distances.
    near = [count for count in rows if abs(count - limit) <= NEAR]
    return min((limit, *near)) if near else None


def fits(tokens: int, limit: int | None) -> bool:
    """Whether so many tokens can go through a model at once; `limit`: see `position_limit`."""
    return limit is None or tokens <= limit


def too_long(limit: int | None) -> str:
    """Why a trace that does not fit is left out."""
    return f"more tokens than the {limit} positions of the model"


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
    size is read in a moment. Parameters that wait on a disk are fetched, a module at a time.
    """
    import torch

    digest, samples = hashlib.sha256(), {}
    for place, module in model.named_modules():
        own = dict(module.named_parameters(prefix=place, recurse=False))
        with _fetched(module, own.values()):
            for name in own:
                flat = module.get_parameter(name.rpartition(".")[2]).detach().reshape(-1)
                spread = flat[:: max(1, len(flat) // 16)][:16]
                samples[name] = spread.to("cpu", torch.float32).numpy().tobytes()
    for name, _ in model.named_parameters():  # each once, where modules share one
        digest.update(name.encode() + samples[name])
    return f"sha256:{digest.hexdigest()}"


def _fetched(module: torch.nn.Module, parameters: Iterable[torch.Tensor]) -> Any:
    """A block in which a module's own parameters are there, wherever accelerate keeps them."""
    if all(parameter.device.type != "meta" for parameter in parameters):
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the vocabulary with its ids, as `sha256:<hex>`; kept on the tokenizer."""
    known: str | None = getattr(tokenizer, "_kfh_fingerprint", None)
    if known is None:
        entries = sorted((number, text) for text, number in tokenizer.get_vocab().items())
        known = f"sha256:{hashlib.sha256(repr(entries).encode()).hexdigest()}"
        tokenizer._kfh_fingerprint = known
    return known


def check_ids(tokenizer: Any, ids: Iterable[int], where: str) -> None:
    """Refuse ids for which the model that the tokenizer was loaded with has no embedding.

    Args:
        tokenizer: as `probing.models.load.check_fit` left it; of another one nothing is known.
        ids: of a text.
        where: the text, for the message.

    Raises:
        DataError: it names the token.
    """
    rows: int | None = getattr(tokenizer, "_kfh_rows", None)
    largest = max(ids, default=0)
    if rows is not None and largest >= rows:
        raise DataError(
            f"{where} holds {tokenizer.convert_ids_to_tokens(int(largest))!r} ({largest}), a token "
            f"for which the model has no embedding: it has {rows}"
        )


def shortest_window(config: Any) -> int | None:
    """Tokens of the shortest window that a layer looks through; None where none has a window."""
    names = ("sliding_window", "attention_chunk_size")
    windows = [getattr(config.get_text_config(), name, None) for name in names]
    return min((int(window) for window in windows if window), default=None)
