"""Whether a checkpoint gave the model all its weights, and whether the model can be saved again.

`from_pretrained` fills what it does not find with random numbers, and leaves out what it has no
place for. Both end in figures that look like others; here they are errors that name the weights.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from probing.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What transformers, safetensors, gguf and torch raise on a damaged or unknown checkpoint.
FAULTS = (
    OSError,
    ValueError,
    ImportError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    EOFError,
    struct.error,
    SafetensorError,
)
_LAYER = re.compile(r"\.\d+\.")
MOST_NAMED = 4  # weights in a message
MOST_SAID = 400  # characters of an error of another library
# Buffers that old code saved and new code makes, or the other way round.
_MADE = ("inv_freq", "masked_bias", "attn.bias", "attention.bias", "position_ids", "causal_mask")


def told(error: BaseException) -> str:
    """What an error of another library says, on one line and not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]} …"


@contextmanager
def quiet() -> Iterator[None]:
    """No report of transformers' on what it loads: `check_weights` says what there is to say."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def unpacked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` by which a GGUF's weights become plain ones.

    Left packed, where kernels for that are installed, they could neither be trained nor saved.
    """
    import transformers

    kind = getattr(transformers, "GgufConfig", None)  # before it was there they always were
    return {"quantization_config": kind(dequantize=True)} if options and kind else {}


def check_weights(name: str, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Refuse a model that holds weights which are not the checkpoint's.

    Parts of the checkpoint that serve another task, such as a value head, give a warning.

    Args:
        name: what messages call it.
        model: as `from_pretrained` gave it.
        found: its loading info: missing, mismatched and unexpected keys, messages.

    Raises:
        ModelError: it names a few of the weights, and says how many there are.
    """
    buffers = {key for key, _ in model.named_buffers()}
    missing = [k for k in sorted(found["missing_keys"]) if not (k in buffers and k.endswith(_MADE))]
    extra = sorted(found["unexpected_keys"])
    faults = []
    if missing:
        faults.append(f"not in it ({len(missing)}): {listed(missing)}")
    if shapes := sorted(found["mismatched_keys"]):
        texts = [f"{key} {tuple(has)}, not {tuple(wants)}" for key, has, wants in shapes]
        faults.append(f"of another shape ({len(shapes)}): {listed(texts)}")
    if messages := list(found["error_msgs"]):
        faults.append(listed(messages))
    unused = extra if missing else [*_of_modules(model, extra), *_of_layers(model, extra)]
    if unused:
        faults.append(f"without a place in the model ({len(unused)}): {listed(unused)}")
    if faults:
        raise ModelError(
            f"{name}: its weights are not those of its config ({type(model).__name__}): "
            f"{'; '.join(faults)}. Is the download whole, and does config.json belong to it?"
        )
    if extra:
        text = f"{name}: {len(extra)} weights of the checkpoint are not used: {listed(extra)}"
        warnings.warn(text, stacklevel=2)


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many follow.

    Example:
        >>> listed(["a", "b", "c", "d", "e", "f"])
        'a, b, c, d and 2 more'
    """
    every = list(names)
    more = len(every) - MOST_NAMED
    return ", ".join(every[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _of_modules(model: PreTrainedModel, extra: list[str]) -> list[str]:
    """Of weights without a place: those of a module that is there, such as a bias."""
    own = {key.rpartition(".")[0] for key, _ in model.named_parameters()}
    # Other leaves are scales of quantised layers, and the like.
    return [k for k in extra if k.endswith((".weight", ".bias")) and k.rpartition(".")[0] in own]


def _of_layers(model: PreTrainedModel, extra: list[str]) -> list[str]:
    """Of weights without a place: those of a layer like the model's own, which has fewer.

    A layer that predicts further tokens is none of them: it has weights that no other layer has.
    """
    kinds = {_LAYER.sub(".0.", key, count=1) for key, _ in model.named_parameters()}
    layers: dict[str, list[str]] = {}
    for key in extra:
        if match := _LAYER.search(key):
            layers.setdefault(key[: match.end()], []).append(key)
    return [
        key
        for keys in layers.values()
        if all(_LAYER.sub(".0.", key, count=1) in kinds for key in keys)
        for key in keys
    ]


def check_gguf(path: Path, model: PreTrainedModel) -> None:
    """Refuse a GGUF file of which parts found no place; its reader drops them without a word.

    Every number of the file is a number of the model, so there must be as many of both.

    Raises:
        ModelError: it names the tensors.
    """
    from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map

    reader = GGUFReader(path)
    layers = int(model.config.get_text_config().num_hidden_layers)
    # Blocks that predict more than one token stand behind the layers; no model here has them.
    behind = tuple(f"blk.{layer}." for layer in range(layers, layers + 8))
    tensors = {t.name: int(t.n_elements) for t in reader.tensors if not t.name.startswith(behind)}
    kept = {key: w for key, w in model.state_dict().items() if not key.endswith(_MADE)}
    state = {tensor.data_ptr(): tensor.numel() for tensor in kept.values()}  # tied ones once
    if sum(tensors.values()) <= sum(state.values()):
        return
    field = reader.fields.get("general.architecture")
    name = bytes(field.parts[field.data[0]]).decode() if field else ""
    arch = next((kind for kind, text in MODEL_ARCH_NAMES.items() if text == name), None)
    names = get_tensor_name_map(arch, layers) if arch is not None else None
    known = set()
    for key in model.state_dict():
        owner, _, leaf = key.rpartition(".")
        known.add(f"{names.get_name(owner) if names else ''}.{leaf}")
    unused = sorted(tensors.keys() - known) or sorted(tensors)
    raise ModelError(
        f"{path}: {len(unused)} tensors of the file have no place in the model "
        f"({type(model).__name__}): {listed(unused)}. It would compute without them; take its "
        "weights as safetensors"
    )


def check_trainable(model: PreTrainedModel, tokenizer: Any, name: str) -> None:
    """Refuse at the start what could not be trained, or not be saved at the end.

    Raises:
        ModelError: with the reason.
    """
    from transformers import trainer_utils

    if getattr(model, "hf_quantizer", None) is not None:
        method = getattr(model.config, "quantization_config", None)
        kind = getattr(method, "quant_method", "its method")
        raise ModelError(
            f"{name} is quantised ({getattr(kind, 'value', kind)}): its weights can neither be "
            "trained nor saved as they are. Train the model that it was made from"
        )
    table: Any = model.get_input_embeddings()
    for use, number in {"pads": tokenizer.pad_token_id, "ends": tokenizer.eos_token_id}.items():
        if number is not None and number >= int(table.num_embeddings):
            raise ModelError(
                f"{name}: the model has no embedding for the token that {use} a response "
                f"({tokenizer.convert_ids_to_tokens(number)!r}, {number}): set another in its "
                "tokenizer_config.json"
            )
    trial: Any = SimpleNamespace(
        config=deepcopy(model.config),
        generation_config=deepcopy(getattr(model, "generation_config", None)),
    )
    try:
        with quiet(), TemporaryDirectory() as folder:  # all but the weights
            model.save_pretrained(folder, state_dict={})
            tokenizer.save_pretrained(folder)
            # A trainer sets the tokenizer's special tokens, and what was changed is checked more.
            align = getattr(trainer_utils, "align_special_tokens", lambda *_: None)
            align(trial, tokenizer)
            if trial.generation_config is not None:
                trial.generation_config.save_pretrained(folder)
    except FAULTS as error:
        raise ModelError(f"{name} could not be saved after training: {told(error)}") from error
