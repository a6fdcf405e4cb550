"""What the documentation names exists: functions, commands, options, figures of tables, links."""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from kfh.cli import whole

ROOT = Path(__file__).parent.parent
FLOORS = ("probing", "rl", "kfh")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "LOG.md"),
]
DOTTED = re.compile(r"`((?:probing|rl|kfh)(?:\.\w+)+)`")
FENCE = re.compile(r"^```bash[^\n]*\n(.*?)^```$", re.M | re.S)
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
HEAD_ROW = r"\| (\d+)\.(\d+) \| 0\.\d+ \("
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
GENERATED = ("reference/", "notebooks/", "index.md", "pocket.md", "pocket-long.md", "changelog.md")
GENERATED += ("contributing.md",)


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_named_modules_and_functions_exist(page: Path) -> None:
    for name in DOTTED.findall(page.read_text(encoding="utf-8")):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            pytest.fail(f"{page.name} names {name}: {error}")


def test_paper_names_a_function_for_every_equation() -> None:
    rows = re.findall(r"^\| (\d+|–) \|.*\| ([^|]*) \|$", (ROOT / "docs/PAPER.md").read_text(), re.M)
    assert len(rows) > 20
    for number, functions in rows:
        names = DOTTED.findall(functions)
        assert names, f"equation {number} names no function"
        for name in names:
            value = pkgutil.resolve_name(name)
            assert callable(value) and inspect.getdoc(value), name


def commands(page: Path) -> list[list[str]]:
    """The kfh commands in the page's blocks of bash, as words."""
    lines = "".join(FENCE.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    split = (shlex.split(line, comments=True) for line in lines.splitlines())
    return [words[words.index("kfh") :] for words in split if "kfh" in words]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_named_commands_and_options_exist(page: Path) -> None:
    for words in commands(page):
        command: Any = whole()
        rest = words[1:]
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            folder = command.name == "plot" and rest[0] not in command.commands
            name = "runs" if folder else rest.pop(0)  # `kfh plot DIR` is `kfh plot runs DIR`
            assert name in command.commands, f"no such command: {' '.join(words)}"
            command = command.commands[name]
        known = {name for option in command.params for name in option.opts + option.secondary_opts}
        unknown = {word for word in rest if re.match(r"--[a-z]", word)} - known - {"--help"}
        assert not unknown, f"{' '.join(words)}: {sorted(unknown)}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    """On disk; the strict build of the site holds the pages that it makes, and the anchors."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        made = path.is_relative_to(ROOT / "docs") and any(
            str(path.relative_to(ROOT / "docs")).startswith(name) for name in GENERATED
        )
        assert made or path.exists(), f"{page.name} links to {target}"


def kept_standings(trial: str) -> dict[str, Any]:
    """Where the methods of a kept trial stand."""
    path = ROOT / f"data/results/{trial}/comparison.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["standings"]
    return found


def kept_pairs(trial: str) -> list[dict[str, Any]]:
    """The methods of a kept trial, each held against another."""
    pairs: list[dict[str, Any]] = kept_standings(trial)["pairs"]
    return pairs


def exact(pair: dict[str, Any]) -> list[dict[str, Any]]:
    """The speed-ups at lengths that both come to, which are no bounds."""
    return [speed for speed in pair["speed_ups"] if not speed["bound"]]


def in_points(estimate: dict[str, float]) -> dict[str, float]:
    """A difference of accuracies, in points."""
    return {end: 100 * estimate[end] for end in ("value", "low", "high")}


@pytest.mark.parametrize(
    ("trial", "page"), [("long", "results"), ("trial", "results"), ("smollm2/rl", "smollm2")]
)
def test_tables_are_those_of_the_kept_trial(trial: str, page: str) -> None:
    """Every row of both in the page, as the kept files have it."""
    from kfh.findings.standings import course_table, speed_table
    from kfh.tables import markdown

    text, kept = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8"), kept_standings(trial)
    tables = [speed_table(kept["pairs"])]
    if page == "results":
        tables.append(course_table(kept["ends"], kept["lengths"]))
    for table in tables:
        for line in markdown(table).strip().split("\n\n")[1].splitlines():
            assert line in text, f"docs/{page}.md lacks: {line}"


def test_a_target_is_met_by_as_many_first_responses_as_results_say() -> None:
    import pandas as pd

    text = " ".join((ROOT / "docs/results.md").read_text(encoding="utf-8").split())
    shares = []
    for trial, target in (("long", 400), ("trial", 100), ("long", 350)):
        course = pd.read_parquet(ROOT / f"data/results/{trial}/initial/curve.parquet")
        tokens = course.loc[course["part"] == "validation", "tokens"]
        shares.append(f"{100 * (tokens <= target).mean():.0f} %")
    wide, short, tight = shares
    assert f"within 400 tokens, which {wide} of the first responses" in text
    assert f"within 100, {short})" in text and f"Within 350 tokens are {tight}:" in text


def test_readme_says_of_training_what_the_kept_trials_say() -> None:
    """Figures and words, of the longer level and of SmolLM2."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").replace("−", "-").split())
    pairs = kept_pairs("long")
    for pair in pairs[:2]:  # attnpo and attnpo-answer against tlmre
        second = pair["speed_ups"][1]
        assert "{value:.1f} × ({low:.1f}–{high:.1f})".format(**second["steps"]) in readme
        points = in_points(second["accuracy"])
        assert "{value:.1f} points, {low:.0f} to {high:+.0f}".format(**points) in readme
    loss, none_shown = (in_points(pair["gap"]) for pair in pairs[:2])
    assert loss["high"] < 0 < none_shown["high"]
    assert "{value:.1f} points ({low:.1f} to {high:.1f})".format(**loss) in readme
    assert "({value:.1f} points, {low:.1f} to {high:+.1f})".format(**none_shown) in readme
    named = {(pair["method"], pair["against"]): pair for pair in pairs}
    alone = [up for up in named["attnpo-answer", "tlmre"]["speed_ups"] if up["bound"] == "≥"]
    assert len(alone) == 2 and all(up["steps"]["low"] > 1 for up in alone)
    least = min(up["steps"]["value"] for up in alone)
    assert f"at two more, where not every run of TLMRE comes (at least {least:.1f} ×)" in readme
    direct = in_points(named["attnpo-answer", "attnpo"]["gap"])
    assert direct["low"] < 0 < direct["high"]
    checks, of_checks = (
        in_points(named["attnpo-checks", other]["gap"]) for other in ("tlmre", "attnpo")
    )
    assert checks["low"] < 0 < checks["high"] and of_checks["low"] < 0 < of_checks["high"]
    said = "{value:+.1f}, {low:.1f} to {high:+.1f}"
    both = "; ".join(said.format(**gap) for gap in (direct, of_checks))
    assert f"itself neither is better ({both})" in readme
    ratios = [up["steps"] for up in exact(named["attnpo-checks", "tlmre"])]
    assert len(ratios) == 3 and all(ratio["low"] > 1 for ratio in ratios)
    least, most = (end(ratio["value"] for ratio in ratios) for end in (min, max))
    assert f"({least:.1f} to {most:.1f} ×; {said.format(**checks)})" in readme
    by_words = next(pair for pair in pairs if pair["method"] == "overlap")["speed_ups"][1]["steps"]
    assert "{value:.1f} × ({low:.1f}–{high:.1f}). See below".format(**by_words) in readme
    both = next(pair for pair in pairs if pair["against"] == "overlap")
    assert [up["steps"]["low"] > 1 for up in exact(both)] == [False, False, True]
    assert "the heads are shown sooner than it at one length of three" in readme

    fewer = {
        pair["against"]: pair["tokens"]["0.80"] for pair in pairs if pair["method"] == "attnpo"
    }
    less, least, most = (
        " and ".join(f"{-fewer[control][end]:.0f}" for control in ("recency", "random-heads"))
        for end in ("value", "high", "low")
    )
    ends = " and ".join(map("–".join, zip(least.split(" and "), most.split(" and "), strict=True)))
    assert f"{less} more are left, {ends})" in readme

    short = {pair["method"]: pair for pair in kept_pairs("trial") if pair["against"] == "tlmre"}
    ratios = [speed["steps"] for speed in exact(short["attnpo"])]
    assert all(ratio["low"] < 1 < ratio["high"] for ratio in ratios)
    values = [ratio["value"] for ratio in ratios]
    assert f"({min(values):.2f} to {max(values):.2f} ×, every interval holds 1)" in readme
    shown = [speed["steps"]["low"] > 1 for speed in short["oracle"]["speed_ups"]]
    assert shown == [True] * 3 + [False] * 3 + [True]
    assert "True labels are sooner at four lengths of seven" in readme

    found = []
    for control in ("random-heads", "recency"):
        (pair,) = (pair for pair in kept_pairs("trial") if pair["against"] == control)
        ratios = [speed["steps"] for speed in exact(pair)]
        values = [ratio["value"] for ratio in ratios]
        found.append((min(values), max(values), sum(ratio["low"] > 1 for ratio in ratios)))
    (least, most, shown), (low, high, few) = found
    assert f"{least:.1f} to {most:.1f} × sooner than by a random head" in readme
    assert f"{low:.1f} to {high:.1f} × than by recency (shown at five and four of six)" in readme
    assert (shown, few, len(ratios)) == (5, 4, 6)

    (pair,) = kept_pairs("smollm2/rl")
    ratios = [speed["steps"] for speed in exact(pair)]
    assert all(ratio["low"] < 1 < ratio["high"] for ratio in ratios)
    values = [ratio["value"] for ratio in ratios]
    assert f"{min(values):.2f} to {max(values):.2f} × sooner than TLMRE" in readme
    assert "({low:.2f}–{high:.2f})".format(**ratios[-1]) in readme
    assert (
        "{value:+.1f} points ({low:.1f} to {high:+.1f})".format(**in_points(pair["gap"])) in readme
    )


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("types/pocket", "results"),
        ("types/smollm2-real", "results"),
        ("smollm2/base/types", "smollm2"),
        ("smollm2/heads/types", "smollm2"),
        ("smollm2/origins", "smollm2"),
    ],
)
def test_tables_of_head_types_are_those_of_the_kept_files(name: str, page: str) -> None:
    """Every row of them in the page; of the study of SmolLM2, of a model the types alone."""
    from kfh.findings.heads import compared_types, types_tables
    from kfh.tables import markdown

    kept = json.loads((ROOT / f"data/results/{name}.json").read_text(encoding="utf-8"))
    tables = compared_types(kept) if name.endswith("origins") else types_tables(kept)
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    for table in tables[:1] if name.endswith("/types") else tables:
        for line in markdown(table).strip().split("\n\n")[1].splitlines():
            assert line in text, f"docs/{page}.md lacks: {line}"


def named_heads(text: str, probes: Sequence[Any], metrics: Sequence[str]) -> set[tuple[int, int]]:
    """The heads that a table of a page names, each with its figures in these probes as kept."""
    from probing.numbers import Number

    tables = [probe.table.set_index(["layer", "head"]) for probe in probes]
    heads = {(int(layer), int(head)) for layer, head in re.findall(HEAD_ROW, text)}
    for layer, head in heads:
        rows = [table.loc[(layer, head)] for table in tables]
        cells = [str(Number.column(row, metric)) for row in rows for metric in metrics]
        assert f"| {layer}.{head} | {' | '.join(cells)} |" in text
    return heads


def check_controls(text: str, probe: Any, *besides: str) -> None:
    """Each control of a probe stands in the page as kept; `besides`: but for these."""
    from kfh.findings.probe import controls_table
    from kfh.tables import markdown

    left_out = tuple(f"| {name}" for name in ("mean of all heads", "uniform", *besides))
    for line in markdown(controls_table(probe)).strip().split("\n\n")[1].splitlines()[2:]:
        if not line.startswith(left_out):
            assert line in text, f"docs/smollm2.md lacks: {line}"


def test_figures_of_the_study_are_those_of_its_kept_files() -> None:
    """Of docs/smollm2.md: the table of heads, the sets on held-out halves, controls, the gate."""
    from probing import ProbeResult
    from probing.choices import METRICS
    from probing.numbers import Number

    study = ROOT / "data/results/smollm2"
    text = " ".join((ROOT / "docs/smollm2.md").read_text(encoding="utf-8").split())
    probes = [ProbeResult.load(study / name) for name in ("base", "heads")]
    tables = [probe.table.set_index(["layer", "head"]) for probe in probes]
    both = text.partition("## Do they only find words?")[0]
    assert {*probes[0].chosen, *probes[1].chosen} <= named_heads(both, probes, METRICS)
    check_controls(both, probes[1])
    for metric in ("gating", "sra"):
        sets = [f"{Number.column(probe.set_point, metric)}" for probe in probes]
        assert f"{sets[0]} and {sets[1]}" in text
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    best = [table.loc[table["gating"].idxmax()] for table in tables]
    shown = [
        f"{row['gating']:.3f}, {row['gating_low']:.3f}–{row['gating_high']:.3f}" for row in best
    ]
    untrained = max(each["gating"] for each in probes[1].counts["random_weights"])
    words = f"{shown[0]}, and {shown[1]}; of the best of five untrained models {untrained:.3f}"
    assert f"best head {words}" in readme.replace("(", "").replace(")", "")
    kept = json.loads((study / "eval/eval.json").read_text(encoding="utf-8"))
    found = kept["benchmarks"]["words-held-out"]
    accuracy, tokens = found["accuracy"], found["tokens"]["value"]
    shortest = tokens - found["pocket"]["redundant_tokens"]["value"]
    shown = ".{value:03.0f} (.{low:03.0f}–.{high:03.0f})".format(
        **{end: 1000 * accuracy[end] for end in ("value", "low", "high")}
    )
    assert f"| {shown} |" in text
    assert f"{tokens / shortest:.2f} ({tokens:.1f} over {shortest:.1f})" in text
    for name in ("unreadable", "unreadable_steps"):
        assert f"({accuracy['n'] - found['pocket'][name]} of {accuracy['n']})" in text


def test_figures_of_bare_answers_are_those_of_the_kept_files() -> None:
    """Of docs/smollm2.md: heads by whole answers and by bare ones, sets and controls."""
    from probing import ProbeResult
    from probing.numbers import Number

    text = " ".join((ROOT / "docs/smollm2.md").read_text(encoding="utf-8").split())
    bare = text.partition("## Do they only find words?")[2].partition("## What else are they")[0]
    names = ("base", "bare-base", "heads", "bare-heads")
    read = [ProbeResult.load(ROOT / "data/results/smollm2" / name) for name in names]
    chosen = {pair for probe in read for pair in probe.chosen}
    assert named_heads(bare, read, ["balanced"]) == chosen
    alone = [read[1], read[3]]
    check_controls(bare, alone[1], "recency")
    for metric in ("balanced", "sra"):
        sets = [f"{Number.column(each.set_point, metric)}" for each in alone]
        assert f"{sets[0]} and {sets[1]}" in bare
        controls = alone[1].controls.set_index("control")[f"{metric}_held_out"]
        other = {"balanced": "answer overlap", "sra": "earliness"}[metric]
        for name in ("best head of random weights", other):
            assert f"{controls[name]:.3f}" in bare


def test_words_on_head_types_are_those_of_the_kept_files() -> None:
    """What docs/results.md says without a table: balanced SRA with retrieval, types with types."""
    from probing.numbers import Number

    def kept(name: str) -> Any:
        return json.loads((ROOT / f"data/results/{name}.json").read_text(encoding="utf-8"))

    def between(one: str, other: str, name: str = "types/smollm2-real") -> str:
        names, matrix = kept(name)["correlations"].values()
        return f"{matrix[names.index(one)][names.index(other)]:+.2f}"

    both, pair = kept("types/balanced-retrieval"), ("retrieval", "induction")
    found, named = both["overlap"], [f"{layer}.{head}" for layer, head in both["shared"]]
    text = " ".join((ROOT / "docs/results.md").read_text(encoding="utf-8").split())
    for words in (
        f"ρ = {Number.column(both, 'spearman', 2, signed=True)}, and {found['shared']} of the ten",
        f"{', '.join(named[:2])} and {named[2]} ({found['low']}–{found['high']} over problems; "
        f"chance {found['expected']:.1f}, p = {found['p']:.3f})",
        f"induction go together ({between(*pair)}), sink and span are nearly "
        f"one ({between('sink', 'span')})",
    ):
        assert words in text, f"docs/results.md lacks: {words}"
    text = " ".join((ROOT / "docs/smollm2.md").read_text(encoding="utf-8").split())
    before, after = (between(*pair, f"smollm2/{name}/types") for name in ("base", "heads"))
    assert f"(ρ = {before} and {after} between the first two)" in text


def test_interventions_of_the_study_are_those_of_its_kept_file() -> None:
    """The two tables of docs/smollm2.md, row by row, and the figures of README."""
    from probing.interventions.result import InterventionResult
    from probing.numbers import Number

    result = InterventionResult.load(ROOT / "data/results/smollm2/interventions")
    means, pairs = (rows.to_dict("records") for rows in (result.table, result.differences))
    text = (ROOT / "docs/smollm2.md").read_text(encoding="utf-8")

    def cell(rows: Any, digits: int = 3, signed: bool = False, **of: Any) -> str:
        (row,) = (row for row in rows if all(row[name] == value for name, value in of.items()))
        return str(Number.of(row, digits, signed))

    arms = {"high": "highest scores", "low": "lowest scores", "recent": "most recent"}
    arms |= {"random": "random", "matched": "random, as many tokens"}
    for arm, name in arms.items():
        of = {"part": "steps", "measure": "accuracy", "arm": arm}
        cells = [cell(means, **of, dose=k) for k in (1, 2, 3)]
        assert f"| {name} | {' | '.join(cells)} |" in text
    for mode in ("zero/all", "zero/answer-to-steps"):
        of = {"part": "heads", "arm": "chosen", "mode": mode}
        cells = [
            cell(means, **of, measure="accuracy"),
            cell(means, 2, True, **of, measure="logprob"),
            cell(pairs, 2, True, **of, measure="logprob", against="random"),
        ]
        assert f"| {' | '.join(cells)} |" in text, cells


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_what_snippets_import_exists(page: Path) -> None:
    for snippet in SNIPPET.findall(page.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in FLOORS:
                exec(ast.unparse(node), {})  # an ImportError names what is missing


def test_own_parts_of_the_page_on_extending_work(tmp_path: Path) -> None:
    """Every snippet of it is run as it stands; then its finding is reported."""
    from kfh.findings.kinds import KINDS
    from kfh.findings.page import run_report
    from probing.ranking import CONTROLS
    from rl import TASKS
    from rl.attnpo.methods import METHODS
    from rl.attnpo.rewards import PENALTIES
    from rl.attnpo.signals import SIGNALS

    registries: list[dict[str, Any]] = [CONTROLS, TASKS, METHODS, PENALTIES, SIGNALS]
    before, kinds = [dict(registry) for registry in registries], [*KINDS]
    named: dict[str, Any] = {"__name__": "extend"}
    try:
        for snippet in SNIPPET.findall((ROOT / "docs/howto/extend.md").read_text(encoding="utf-8")):
            exec(snippet, named)
        assert len(named["questions"]) == 10
        (tmp_path / "mine.json").write_text('{"value": 42}', encoding="utf-8")
        run_report(tmp_path, None, None)
        assert "| answer | 42.000 |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    finally:
        KINDS[:] = kinds
        for registry, old in zip(registries, before, strict=True):
            registry.clear()
            registry.update(old)


def test_the_loop_of_the_page_on_engines_credits_by_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run as it stands: what it prints, and what its rows are."""
    named: dict[str, Any] = {"__name__": "engines"}
    (snippet,) = SNIPPET.findall((ROOT / "docs/engines.md").read_text(encoding="utf-8"))
    exec(snippet, named)
    credited, responses = named["credited"], named["responses"]
    assert str(credited.counts()) in capsys.readouterr().out
    assert credited.reasons == ["by step", "by step"]
    assert [len(row) for row in named["rows"]] == [each.length for each in responses]
    short, long = named["advantage"].tolist()
    assert short > 0 > long
    # What nothing needs keeps its blame; some step that the answer looks at is spared.
    assert credited.spared.any() and not credited.spared[1, 3]
    assert {*named["rows"][1]} == {0.0, long}


def test_names_of_the_glossary_exist_and_its_words_stand_once() -> None:
    content = json.loads((ROOT / "kfh/findings/glossary.json").read_text(encoding="utf-8"))
    report, documentation = content["report"], content["documentation"]
    assert list(documentation) == sorted(documentation, key=str.casefold)
    assert not report.keys() & documentation.keys()
    assert content["names"].keys() <= {**report, **documentation}.keys()
    for name in content["names"].values():
        pkgutil.resolve_name(name)
    assert "<!-- glossary -->" in (ROOT / "docs/concepts.md").read_text(encoding="utf-8")


def test_settings_of_site_name_pages_that_exist() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert site["strict"] is True
    pages = re.findall(r"[\w/-]+\.md", json.dumps(site["nav"]))
    for page in pages:
        assert page.startswith(GENERATED) or (ROOT / "docs" / page).is_file(), page
    written = {str(p.relative_to(ROOT / "docs")) for p in PAGES if (ROOT / "docs") in p.parents}
    assert written <= {*pages}, f"not in the navigation: {written - {*pages}}"
