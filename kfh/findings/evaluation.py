"""An evaluation: its tables, figures and caveats, from the content of eval.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfh.findings.base import Place, Row, Section, header_facts, pictures
from kfh.findings.summary import evaluation_summary
from kfh.tables import Cell, Table
from probing.errors import DataError
from probing.files.headers import HEADER, read_object
from probing.numbers import NONE, Number, number
from rl.tasks.base import left_out

CUT_OFF = 0.05  # of responses; more, and their length is not known
FEW_QUESTIONS = 100


def read_evaluation(place: Place) -> Section:
    """Evaluations: settings, the figures of each benchmark, accuracy against length."""
    from rl.runs.figures import tradeoff
    from rl.runs.folders import EVAL_FILE, read_points

    section = Section("Evaluation")
    points = []
    for folder in place.parts:
        try:
            content = read_object(folder / EVAL_FILE)
            points += read_points(folder)
            facts = _facts(folder.name, content)
            table, caveats = evaluation_table(content, folder.name), evaluation_caveats(content)
        except DataError as error:
            section.damaged.append(str(error))
        except (KeyError, TypeError, AttributeError) as error:
            text = f"{folder / EVAL_FILE}: no evaluation of `kfh eval` ({error!r})"
            section.damaged.append(text)
        else:
            section.summary += evaluation_summary(
                folder.name, content, _base_of(content["settings"])[0]
            )
            section.facts += facts
            section.tables.append(table)
            section.caveats += caveats
    if len({point.name for point in points}) > 1:
        captions = {"benchmarks": "accuracy against tokens, by benchmark"}
        section.pictures = pictures(captions, {"benchmarks": tradeoff((), points)})
    return section


def how(settings: Row) -> str:
    """How responses were sampled, in words."""
    if settings["temperature"] == 0:
        return "greedy"
    return f"temperature {settings['temperature']}, top-p {settings['top_p']}"


def _facts(name: str, content: Row) -> list[tuple[str, str]]:
    settings = content["settings"]
    sampling = f"{how(settings)}, at most {settings['max_tokens']} tokens, seed {settings['seed']}"
    return [
        (name, "; ".join(text for _, text in header_facts(content[HEADER]))),
        (f"{name}: model", str(settings["model"])),
        (f"{name}: sampling", sampling),
    ]


def evaluation_table(content: Row, name: str) -> Table:
    """A column a benchmark and one for their mean, a row a figure; what none has gets no row.

    Args:
        content: of eval.json.
        name: of what was evaluated.
    """
    columns = dict(content["benchmarks"])
    sizes = [f"{found['accuracy']['n']} × {found['samples']}" for found in columns.values()]
    rows: list[list[Cell]] = [["questions × samples", *sizes]]
    figures = _figures(columns.values())
    if content.get("overall"):
        columns["mean"] = content["overall"]
        rows[0].append("")
    for title, path, digits in figures:
        cells = [_cell(found, path, digits) for found in columns.values()]
        if any(str(cell) != NONE for cell in cells):
            rows.append([title, *cells])
    return Table(f"{name}; in brackets 95 % over questions", ("", *columns), rows)


def _figures(sets: Iterable[Row]) -> list[tuple[str, tuple[str, ...], int]]:
    """The rows of the table: title, place among a benchmark's figures, decimals."""
    sets = list(sets)

    def listed(key: str, title: str) -> list[tuple[str, tuple[str, ...], int]]:
        keys = dict.fromkeys(inner for found in sets for inner in found[key])
        return [(title.format(inner), (key, inner), 3) for inner in keys]

    return [
        ("accuracy", ("accuracy",), 3),
        *listed("pass_at", "pass@{}"),
        *listed("budgets", "accuracy ≤ {}"),
        ("tokens", ("tokens",), 1),
        ("cut off", ("truncated",), 3),
        ("confused / 1k tokens", ("phrases", "confused"), 2),
        ("summary / 1k tokens", ("phrases", "summary"), 2),
        ("redundant steps", ("pocket", "redundant_steps"), 2),
        ("redundant tokens", ("pocket", "redundant_tokens"), 1),
        ("not readable", ("pocket", "unreadable"), 0),
        ("… for a step", ("pocket", "unreadable_steps"), 0),
        *([("not stated", ("no_box",), 0)] if any(found.get("no_box") for found in sets) else []),
        ("AES", ("aes",), 3),
    ]


def _cell(found: Row, path: Sequence[str], digits: int) -> Cell:
    value: Any = found
    for key in path:
        value = (value or {}).get(key)
    return Number.of(value, digits) if isinstance(value, Mapping) else number(value, digits)


def evaluation_caveats(content: Row) -> list[str]:
    """What to hold against the figures of an evaluation, benchmark by benchmark.

    Args:
        content: of eval.json.
    """
    settings = content["settings"]
    base, caveats = _base_of(settings)
    caveats += [f"The base was evaluated otherwise: {text}." for text in content["base_differs"]]
    for name, figures in content["benchmarks"].items():
        texts = benchmark_caveats(figures, settings, base.get(name))
        caveats += [f"{name}: {text}" for text in texts]
        caveats += left_out(name, figures.get("source") or {})
    return caveats


def benchmark_caveats(figures: Row, settings: Row, base: Row | None) -> list[str]:
    """What to hold against the figures of one benchmark.

    Args:
        figures: as eval.json has them.
        settings: of the evaluation.
        base: the figures of the same benchmark in the base, if there is one.
    """
    accuracy, cut = figures["accuracy"], figures["truncated"]["value"]
    texts = []
    if figures.get("no_answer") == accuracy["n"] * figures.get("samples", 1):
        texts.append(f"no response holds {settings['think_end']}: all are wrong.")
    if without := figures.get("no_box"):  # older files do not say
        texts.append(
            f"{without} responses do not state their answer where it counts (a box or the like; a "
            "letter; a block of code): they count as wrong."
        )
    if seen := figures.get("trained_on"):
        texts.append(f"{seen} of its {accuracy['n']} questions are among those trained on.")
    if cut > CUT_OFF:
        texts.append(
            f"{cut:.0%} of the responses hit the limit of {settings['max_tokens']} tokens: their "
            "true length is not known."
        )
    if figures["unverified"]:
        texts.append(
            f"the verifier does not accept the reference answers of {figures['unverified']} "
            "questions; they count as wrong unless answered letter by letter."
        )
    if figures["faults"]:
        kinds = ", ".join(f"{count} × {kind}" for kind, count in figures["faults"].items())
        texts.append(f"the verifier failed on responses, counted wrong: {kinds}.")
    if accuracy["n"] < FEW_QUESTIONS:
        texts.append(f"{accuracy['n']} questions are few.")
    if base is not None and accuracy["value"] < base["accuracy"]["value"]:
        before = base["accuracy"]
        apart = accuracy["high"] < before["low"]
        texts.append(
            f"accuracy {number(accuracy['value'])} is below the base's {number(before['value'])}; "
            + ("the intervals are apart." if apart else "the intervals overlap.")
        )
    return texts


def _base_of(settings: Row) -> tuple[dict[str, Any], list[str]]:
    """The figures of the base, and what is to say where they cannot be read any more."""
    from rl.evaluation.summary import Base

    if not settings.get("base"):
        return {}, []
    try:
        return Base.load(Path(settings["base"])).benchmarks, []
    except DataError as error:
        return {}, [f"The base cannot be read any more, so accuracies are not compared: {error}"]
