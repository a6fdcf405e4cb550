"""`kfh shrink`: a model without the tokens that a task does not use; a CPU has less to do.

Of a small model's arithmetic the head over 50,000 tokens is a third. The layers stay as they are,
so heads found in one of the two models are those of the other.

1. The tokens of prompts and traces, and whatever the merges make them of.
2. Those rows of the embeddings and the head, in the old order; ids of the settings anew.
3. The tokenizer with the merges that are left, and proof: texts are cut as before, and the logits
   of what is left are the same to the bit.

Byte-pair merges go by rank: the first applicable one is applied. A text whose tokens are all kept
is cut by merges that are all kept, and each still is the first of those that are applicable, so it
is cut as before. Other text falls apart into more, shorter tokens; none is unreadable.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from probing.choices import Dtype
from probing.errors import ConfigError, DataError, ModelError
from probing.files.headers import HEADER, file_header, read_object, write_json
from probing.models.load import MODEL, ModelSource
from probing.settings import check, choice, to_json
from rl.training.sft import taught

RECORD = "vocabulary.json"


@dataclass(frozen=True)
class ShrinkConfig(ModelSource):
    """Which model, and the texts whose tokens it keeps; checked on creation.

    Raises:
        ConfigError: a value out of range.
    """

    _: KW_ONLY
    data: str = choice(
        help="Traces FILE.jsonl or questions such as words:4000@7; several with a comma between."
    )
    out: Path = choice(help="Folder of the smaller model.")
    template: str = choice("auto", "How a question becomes a prompt.")
    dtype: Dtype = choice("float32", "Of the weights.", panel=MODEL)
    seed: int = choice(0, "Of the traces that a task writes.")

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self)


def shrink(config: ShrinkConfig) -> dict[str, Any]:
    """Save the smaller model in `model/`, and what was kept in `vocabulary.json`.

    Args:
        config: its settings.

    Returns:
        The content of `vocabulary.json`.

    Raises:
        ConfigError: the folder holds something else, or no byte-pair merges make the tokens.
        DataError, ModelError: no text; a model that is not the same afterwards.
    """
    from rl.tasks.questions import write_trained_on

    out, settings = Path(config.out), to_json(config)
    if (out / RECORD).exists():
        former = read_object(out / RECORD)
        if former.get("settings") != settings:
            raise ConfigError(f"{out} holds another model: another --out")
        return former
    if out.exists() and {path.name for path in out.iterdir()} - {"model"}:  # left by a killed call
        raise ConfigError(f"{out} holds other files: another --out")
    model, tokenizer = config.load()
    texts = [
        text
        for source in config.data.split(",")
        for _, *pair, _ in taught(source.strip(), tokenizer, config.template, seed=config.seed)
        for text in pair
    ]
    cut: list[list[int]] = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts
    ]
    trial = max(cut, key=len, default=[])[:64]
    if not trial:
        raise DataError(f"{config.data} holds no text")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = kept_tokens(state, {token for ids in cut for token in ids})  # 1
    before = model.get_input_embeddings().num_embeddings, model.num_parameters()
    old = _logits(model, trial)[..., kept]
    keep_rows(model, kept)  # 2
    smaller = _with_state(tokenizer, smaller_state(state, kept), out / "model")
    place = {token: number for number, token in enumerate(kept)}
    for text, ids in zip(texts, cut, strict=True):  # 3
        if smaller(text, add_special_tokens=False)["input_ids"] != [place[one] for one in ids]:
            raise ModelError(f"{config.model}: without the other tokens, {text[:80]!r} is cut anew")
    if not old.equal(_logits(model, [place[one] for one in trial])):
        raise ModelError(f"{config.model}: without the other tokens, its logits are not the same")
    model.save_pretrained(out / "model")
    write_trained_on(out / "model", (), config.model)
    content = {
        HEADER: file_header("cut vocabulary"),
        "settings": settings,
        "texts": len(texts),
        "tokens": {"before": before[0], "after": len(kept)},
        "parameters": {"before": before[1], "after": model.num_parameters()},
    }
    write_json(out / RECORD, content)
    return content


def kept_tokens(state: dict[str, Any], used: Iterable[int]) -> list[int]:
    """Ids to keep, ascending: those used, the tokens that they are made of by any merge, and those
    that no merge makes (bytes, special tokens).

    Args:
        state: of a tokenizer, as `tokenizers` writes it.
        used: ids that must stay.

    Raises:
        ConfigError: its tokens are not made by byte-pair merges.

    Example:
        >>> state = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "abb": 3, "ba": 4},
        ...          "merges": (("a", "b"), ("ab", "b"), ("b", "a"))}, "added_tokens": ()}
        >>> print(*kept_tokens(state, {3}))
        0 1 2 3
    """
    core = state["model"]
    if core["type"] != "BPE":
        raise ConfigError(f"a vocabulary of kind {core['type']} cannot be cut: BPE can")
    number: dict[str, int] = core["vocab"]
    parts: dict[int, set[int]] = {}
    for left, right in pairs(core["merges"]):
        parts.setdefault(number[left + right], set()).update((number[left], number[right]))
    kept = {own for own in number.values() if own not in parts}
    kept |= {added["id"] for added in state["added_tokens"]}
    waiting = set(used) - kept
    while waiting:
        one = waiting.pop()
        kept.add(one)
        waiting |= parts.get(one, set()) - kept
    return sorted(kept)


def pairs(merges: Sequence[Any]) -> Iterable[tuple[str, str]]:
    """The two sides of each merge, which older files write with a space between."""
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def smaller_state(state: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The tokenizer of the kept ids, numbered anew in their order."""
    place = {token: number for number, token in enumerate(kept)}
    vocab = {text: place[own] for text, own in state["model"]["vocab"].items() if own in place}
    merges = [
        [left, right] for left, right in pairs(state["model"]["merges"]) if left + right in vocab
    ]
    added = [{**one, "id": place[one["id"]]} for one in state["added_tokens"]]
    core = {**state["model"], "vocab": vocab, "merges": merges}
    around = _renumbered(state.get("post_processor"), place)
    return {**state, "model": core, "added_tokens": added, "post_processor": around}


def _renumbered(around: Any, place: dict[int, int]) -> Any:
    """What sets tokens around a text: its template names ids, and so do its pairs (text, id)."""
    if not isinstance(around, dict):
        return around
    around = {**around}
    for name, one in around.get("special_tokens", {}).items():
        ids = [place[own] for own in one["ids"]]
        around["special_tokens"] = {**around["special_tokens"], name: {**one, "ids": ids}}
    for name in {"cls", "sep"} & around.keys():
        around[name] = [around[name][0], place[around[name][1]]]
    if "processors" in around:
        around["processors"] = [_renumbered(one, place) for one in around["processors"]]
    return around


def _with_state(tokenizer: Any, state: dict[str, Any], folder: Path) -> Any:
    """Save a tokenizer with another state, and load it."""
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):  # of the old ids
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("added_tokens_decoder", None)  # the state has them
    write_json(folder / "tokenizer_config.json", settings)
    return AutoTokenizer.from_pretrained(folder)


def keep_rows(model: Any, kept: Sequence[int]) -> None:
    """Keep these rows of a model's embeddings and head, and renumber the ids of its settings.

    Args:
        model: a causal language model, changed in place.
        kept: ids, ascending.

    Raises:
        ConfigError: a setting names a token that is not kept.
    """
    import torch

    rows, place = torch.tensor(kept), {token: number for number, token in enumerate(kept)}
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        for part in {id(inner): inner, id(outer): outer}.values():
            for name, weight in [*part.named_parameters(recurse=False)]:
                own = weight.index_select(0, rows.to(weight.device)).clone()
                setattr(part, name, torch.nn.Parameter(own, weight.requires_grad))
    inner.num_embeddings = outer.out_features = len(kept)
    inner.padding_idx = None
    model.config.get_text_config().vocab_size = model.vocab_size = len(kept)
    model.tie_weights()
    found = (model.config, model.config.get_text_config(), model.generation_config)
    for settings in {id(one): one for one in found}.values():
        for name in [name for name in vars(settings) if name.endswith("_token_id")]:
            setattr(settings, name, _moved(getattr(settings, name), place, name))


def _moved(own: int | Collection[int] | None, place: dict[int, int], name: str) -> Any:
    """The new number of an id, or of several."""
    if own is None:
        return None
    if not isinstance(own, int):
        return [_moved(one, place, name) for one in own]
    if own not in place:
        raise ConfigError(f"{name} {own} is none of the tokens that are kept")
    return place[own]


def _logits(model: Any, ids: Sequence[int]) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([[*ids]], device=model.device)).logits[0].cpu()
