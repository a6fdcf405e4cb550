"""The card of a head set on the hub: Markdown with what speaks for the heads and against them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from probing.choices import METRIC_NAMES, METRICS
from probing.numbers import NONE, Number, number

if TYPE_CHECKING:
    from probing.headset import HeadSet


def card_text(head_set: HeadSet, repo: str) -> str:
    """The card (README.md) of a set.

    Args:
        head_set: the set.
        repo: OWNER/NAME, for the lines that load it.
    """
    model, chosen = head_set.model, head_set.selection or {}
    front = {"tags": ["kfh", "key-focus-heads", "attention"], "library_name": "kfh"}
    if model.id.count("/") == 1 and not model.id.startswith((".", "/")):
        front["base_model"] = model.id
    facts = {
        "Model": f"{model.id}: {model.type}, {model.layers} layers of {model.heads} heads",
        "Fingerprint of its config": model.fingerprint,
        "Source": head_set.source,
        "Traces": _traces(head_set),
        "Chosen": _selection(chosen),
        "Steps cut by": (head_set.segmenter or {}).get("name"),
        "Made": head_set.header.get("made"),
    }
    sections = [
        f"---\n{_yaml(front)}---",
        f"# Key-Focus Heads of {model.id}",
        "Attention heads that look back from the answer to the reasoning steps that mattered "
        "(AttnPO, arXiv 2602.09953), found by kfh.",
        f'```python\nfrom probing import HeadSet\n\nheads = HeadSet.from_hub("{repo}")\n```',
        "\n".join(f"- {name}: {text}" for name, text in facts.items() if text),
        "## Heads",
        _heads(head_set),
    ]
    if rows := _scorers(chosen):
        sections += ["## Beside the controls", rows]
    against = [f"- {text}" for text in head_set.caveats]
    if not chosen:
        against.append("- No figures come with this set: nothing is shown of its heads.")
    sections += ["## What to hold against it", "\n".join(against) or "No rule of kfh is broken."]
    return "\n\n".join(sections) + "\n"


def _yaml(values: dict[str, Any]) -> str:
    """Keys with texts and lists, as JSON, which YAML reads."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())


def _traces(head_set: HeadSet) -> str | None:
    """Number and hash; of the file its name alone, since a path says where somebody works."""
    if not (traces := head_set.traces):
        return None
    name = str(traces.get("file", NONE)).replace("\\", "/").rpartition("/")[2]
    return f"{traces.get('ranked', NONE)} ranked of {name} ({traces.get('hash', 'no hash')})"


def _selection(chosen: dict[str, Any]) -> str | None:
    if not chosen:
        return None
    by = METRIC_NAMES.get(chosen.get("by", ""), str(chosen.get("by")))
    return (
        f"{chosen.get('how')} {by} on {chosen.get('select_traces', NONE)} traces, reported on "
        f"{chosen.get('held_out_traces', NONE)} others"
    )


def _heads(head_set: HeadSet) -> str:
    rows = ["| head | SRA | balanced SRA | gating | p |", "|---|---|---|---|---|"]
    for head in head_set.heads:
        sra = Number(head.sra, *(head.sra_interval or (None, None)))
        balanced = Number(head.balanced, *(head.balanced_interval or (None, None)))
        name = f"{head.layer}.{head.head}"
        rows.append(f"| {name} | {sra} | {balanced} | {number(head.gating)} | {number(head.p)} |")
    return "\n".join(rows)


def _scorers(chosen: dict[str, Any]) -> str:
    """The set on the other half and the controls, a row each; empty where nothing is known."""
    rows = {"the set, held out": chosen.get("ensemble_held_out")}
    rows |= chosen.get("controls") or {}
    lines = [
        f"| {name} | "
        + " | ".join(
            str(Number(row.get(m), row.get(f"{m}_low"), row.get(f"{m}_high"))) for m in METRICS
        )
        + " |"
        for name, row in rows.items()
        if row
    ]
    head = "| scorer | " + " | ".join(METRIC_NAMES[metric] for metric in METRICS) + " |"
    return "\n".join([head, "|---" * (len(METRICS) + 1) + "|", *lines]) if lines else ""
