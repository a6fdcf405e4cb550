"""The viewer's tools in headless Chromium: colours, search, filter, side by side, files saved."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import trace_line
from scipy.stats import rankdata, spearmanr
from viewer_pages import HOSTILE, Opened, blocks, codes, exact_ratios, hostile_line, unpack

from probing.viewer.pack import TOKEN_SCALE

pytest_plugins = ["viewer_pages"]

PANES = (
    "nodes => nodes.map(n => [n.classList.contains('graded'), "
    "Number(n.style.getPropertyValue('--a'))])"
)


def address(opened: Opened) -> dict[str, str]:
    """What the page keeps in its address."""
    text = opened.page.evaluate("() => location.hash.slice(1)")
    return {name: values[0] for name, values in parse_qs(text).items()}


# ---- colours


def test_shades_ranks_and_correlations_are_those_of_scipy(opened: Opened) -> None:
    first = [0.5, 4.0, float("nan"), 1.0, 4.0, 0.125, 2.5]
    second = [3.0, 2.0, 1.0, 1.0, 8.0, 0.5, 0.5]
    known = ~np.isnan(first)
    values = np.array(first)[known]
    run = opened.page.evaluate
    ranks = run("values => Scale.ranks(values)", first)
    assert np.isnan(ranks[2]) and np.array_equal(
        np.array(ranks)[known], rankdata(-values, method="min")
    )
    shade = "([name, values, all]) => values.map(Scale.of(name, values, all, 2)).map(s => s.a)"
    by_rank = np.array(run(shade, ["rank", first, [first]]))
    np.testing.assert_allclose(by_rank[known], 1 - (rankdata(-values, method="min") - 1) / 5)
    by_log = np.array(run(shade, ["log", first, [first, second]]))
    np.testing.assert_allclose(by_log[known], (np.log2(values) + 3) / 6)  # from 1/8 to 8
    uniform = np.array(run(shade, ["uniform", first, []]))
    np.testing.assert_allclose(uniform[known], np.minimum(np.abs(np.log2(values)) / 2, 1))
    assert by_rank[2] == by_log[2] == uniform[2] == 0
    rho = run("([a, b]) => Scale.correlation(a, b)", [first, second])
    assert rho == pytest.approx(spearmanr(values, np.array(second)[known]).statistic)
    assert np.isnan(run("() => Scale.correlation([1, 1], [1, 2])"))


def test_colour_by_rank_or_log_score(opened: Opened, page_file: Path) -> None:
    page = opened.page
    exact = exact_ratios(page_file, 0, 0)
    page.select_option("#colour", "rank")
    ranks = rankdata(-exact, method="min")
    expected = [[True, pytest.approx(1 - (rank - 1) / 3, abs=1e-3)] for rank in ranks]
    assert page.eval_on_selector_all(".step .pane", PANES) == expected
    assert page.eval_on_selector_all("#strip .bar", PANES) == expected
    page.keyboard.press("t")
    page.wait_for_function("() => document.querySelectorAll('.pane.built').length === 4")
    block = blocks(page_file)
    rows = block["index"]["models"][0]["tokenViews"]
    mass = TOKEN_SCALE.decode(codes(block["trace-0"]["models"][0]["mass"], "u1", rows))[0]
    shown = page.eval_on_selector_all(
        ".cell",
        "nodes => nodes.map(n => [Number(n.dataset.cell), n.style.getPropertyValue('--a')])",
    )
    places = (rankdata(-mass, method="min") - 1) / (len(mass) - 1)
    for cell, a in shown:
        assert float(a) == pytest.approx(1 - places[cell], abs=1e-3)
    page.select_option("#colour", "log")
    place = (np.log2(exact) - np.log2(exact.min())) / np.log2(exact.max() / exact.min())
    assert page.eval_on_selector_all(".step .pane", PANES) == [
        [True, pytest.approx(a, abs=1e-3)] for a in place
    ]
    assert opened.texts("#scale i")[::2] == [f"{exact.min():.2f}", f"{exact.max():.2f}"]
    assert address(opened)["colour"] == "log"
    page.focus("#main")
    page.keyboard.press("c")  # after log: rank, then as it was
    page.keyboard.press("c")
    assert "colour" not in address(opened) and opened.texts("#scale i")[2] == "1"
    assert page.locator(".graded").count() == 0


# ---- search and filter


def test_find_counts_and_goes_round(opened: Opened) -> None:
    page = opened.page
    line = trace_line(3, steps=7)
    texts = [line["response"][s["start"] : s["end"]] for s in line["steps"]]
    hits = [k for k, text in enumerate(texts) if "LET ME".lower() in text.lower()]
    assert len(hits) > 1
    page.locator("#list li").nth(3).click()
    page.keyboard.press("f")
    page.keyboard.type("LET ME")  # letters in the field are no commands, and case does not count
    assert opened.texts("#find-count") == [f"{len(hits)} steps"]
    current = lambda: int(page.get_attribute(".step[aria-current]", "data-step"))  # noqa: E731
    for key, place in [("Enter", 0), ("Enter", 1), ("Shift+Enter", 0), ("Shift+Enter", -1)]:
        page.keyboard.press(key)
        assert current() == hits[place]
    assert opened.texts("#find-count") == [f"{len(hits)} of {len(hits)} steps"]
    assert page.evaluate("() => document.activeElement.id") == "find"
    page.keyboard.press("Escape")
    page.keyboard.press("g")  # round the end
    assert current() == hits[0] and page.get_attribute(".step:focus", "data-step") == str(hits[0])
    marked = page.eval_on_selector_all(".step.hit", "nodes => nodes.map(n => +n.dataset.step)")
    assert marked == hits
    ranges = "() => [...CSS.highlights.get('hit')].map(r => r.toString())"
    assert page.evaluate(ranges) == ["let me"] * len(hits)
    page.keyboard.press("t")
    page.wait_for_function("() => document.querySelectorAll('.pane.built').length === 7")
    assert page.evaluate(ranges) == ["let me"] * len(hits)  # over tokens, too
    assert opened.texts(".step .text") == texts
    assert address(opened)["find"] == "LET ME"
    page.fill("#find", "a.*[")
    assert opened.texts("#find-count") == ["no step"] and page.locator(".hit").count() == 0
    assert page.locator("#find-on").is_disabled()


def test_filter_by_label(opened: Opened) -> None:
    page = opened.page
    line = trace_line(3, steps=7)
    labels = [step["label"] for step in line["steps"]]
    kept = [k for k, label in enumerate(labels) if label == "redundant"]
    page.locator("#list li").nth(3).click()
    counts = [str(labels.count("essential")), str(labels.count("redundant")), "0"]
    assert opened.texts("#labels .many") == counts
    page.click('#labels [data-label="essential"]')
    seen = ".step:not([hidden])"
    assert page.eval_on_selector_all(seen, "nodes => nodes.map(n => +n.dataset.step)") == kept
    assert opened.texts("#shown-count") == [f"{len(kept)} of 7 steps shown"]
    out = page.eval_on_selector_all("#strip .bar.out", "nodes => nodes.map(n => +n.dataset.step)")
    assert out == [k for k in range(7) if k not in kept]
    visited = []
    for _ in range(len(kept) + 1):  # the last press stays where it is
        page.keyboard.press("n")
        visited.append(int(page.get_attribute(".step:focus", "data-step")))
    assert visited == [*kept, kept[-1]]
    page.fill("#find", "So ")  # essential steps alone begin so
    assert opened.texts("#find-count") == ["no step"]
    page.focus("#main")
    page.keyboard.press("1")
    page.keyboard.press("2")
    assert opened.texts("#find-count")[0].endswith(f" {labels.count('essential')} steps")
    assert address(opened)["without"] == "redundant"
    page.keyboard.press("1")
    page.keyboard.press("3")
    assert page.locator(seen).count() == 0
    page.keyboard.press("n")  # nowhere to go, and no complaint
    assert opened.texts("#shown-count") == ["0 of 7 steps shown"]
    page.keyboard.press("j")  # the filter stays for the next trace
    assert page.locator(seen).count() == 0


# ---- side by side


def test_two_heads_side_by_side(opened: Opened, page_file: Path) -> None:
    page = opened.page
    index = blocks(page_file)["index"]
    keys = [f"{h['layer']}.{h['head']}" for h in index["models"][0]["heads"]]
    page.keyboard.press("b")  # beside the set its best head
    assert address(opened)["beside"] == keys[0]
    page.select_option("#head", "4")
    page.click('#grid [data-view="7"]', modifiers=["Shift"])
    sides = [exact_ratios(page_file, 0, view) for view in (4, 7)]
    shown = np.array([float(text) for text in opened.texts(".step .ratio")]).reshape(4, 2)
    np.testing.assert_allclose(shown, np.transpose(sides), atol=0.0051)
    line = trace_line(0, steps=4)
    texts = [line["response"][s["start"] : s["end"]] for s in line["steps"]]
    assert opened.texts(".step .text") == [text for text in texts for _ in range(2)]
    assert len(opened.texts("#strip .bar")) == len(opened.texts("#strip-beside .bar")) == 4
    assert opened.texts(".columns b") == [f"Head {keys[3]}", f"Head {keys[6]}"]
    rho = spearmanr(*sides).statistic
    assert f"{rho:.2f}" in opened.texts("#agree")[0]
    page.select_option("#sort", "differ")
    sra = [(codes(t["models"][0]["sra"], "u2", 1)[0] - 1.0) / 65534 for t in index["traces"]]
    apart = [abs(values[4] - values[7]) for values in sra]
    listed = page.eval_on_selector_all("#list li", "nodes => nodes.map(n => +n.dataset.trace)")
    assert [apart[i] for i in listed] == sorted(apart, reverse=True)
    page.focus("#main")
    page.keyboard.press("x")
    assert (address(opened)["head"], address(opened)["beside"]) == (keys[6], keys[3])
    page.keyboard.press("H")
    assert address(opened)["beside"] == keys[2]
    page.keyboard.press("n")
    page.keyboard.press("b")
    assert "beside" not in address(opened) and page.locator(".pane").count() == 4
    assert page.get_attribute(".step[aria-current]", "data-step") == "0"  # it stays the current
    assert page.input_value("#sort") == "file"


def test_two_models_side_by_side(browser: Any, two_file: Path) -> None:
    opened = Opened(browser, two_file)
    page, found = opened.page, blocks(two_file)
    assert (address(opened)["head"], address(opened)["beside"]) == ("1/set", "2/set")
    sides = [exact_ratios(two_file, 0, 0, model) for model in (0, 1)]
    shown = np.array([float(text) for text in opened.texts(".step .ratio")]).reshape(4, 2)
    np.testing.assert_allclose(shown, np.transpose(sides), atol=0.0051)
    assert opened.texts(".columns b") == ["The head set of model", "The head set of other"]
    page.locator("#list li").nth(6).click()  # steps are those of the offsets, whatever they hold
    page.keyboard.press("t")
    page.wait_for_function("() => document.querySelectorAll('.pane.built').length === 8")
    assert opened.texts(".step .text") == [text for text in HOSTILE for _ in range(2)]
    for column in (0, 1):  # each in the tokens of its model
        cells = unpack(found["trace-6"]["models"][column]["cells"])
        spans = [span[:2] for span in found["trace-6"]["steps"]]
        inside = [c for c, (a, b, _) in enumerate(cells) for s, e in spans if a < e and b > s]
        drawn = page.eval_on_selector_all(
            f'.pane[data-column="{column}"] .cell', "nodes => nodes.map(n => +n.dataset.cell)"
        )
        assert drawn == inside
    page.select_option("#beside", "0")  # both of one model: the panes are made anew
    assert opened.texts(".columns b") == ["The head set of model"] * 2
    page.keyboard.press("x")
    assert page.evaluate("() => window.pwned") is None
    opened.close()


def test_address_is_restored(browser: Any, two_file: Path) -> None:
    place = "#trace=t%2F3&head=2/1.2&beside=1/2.3&colour=rank&without=none,essential&find=again"
    opened = Opened(browser, two_file, address=place)
    assert address(opened) == parse_address(place)
    assert opened.texts("#meta .id") == ["t/3"]
    assert opened.texts(".columns b") == ["Head 1.2 of other", "Head 2.3 of model"]
    assert opened.page.input_value("#find") == "again"
    opened.page.evaluate("() => { location.hash = '#trace=t%2F1&head=1/set&colour=toString'; }")
    opened.page.wait_for_function("() => document.querySelector('#meta .id').textContent === 't/1'")
    assert address(opened) == {"trace": "t/1", "head": "1/set"}
    opened.close()


def parse_address(text: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(text[1:]).items()}


# ---- what is saved


def saved(opened: Opened, kind: str) -> tuple[str, bytes]:
    """Name and content of a file that the page offers."""
    with opened.page.expect_download() as download:
        opened.page.click(f'#exporting [data-kind="{kind}"]')
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_saved_steps_are_those_seen(browser: Any, two_file: Path) -> None:
    opened = Opened(browser, two_file)
    opened.page.locator("#list li").nth(6).click()
    opened.page.keyboard.press("1")  # of four steps the two redundant ones
    opened.page.keyboard.press("e")
    name, content = saved(opened, "csv")
    assert name == "t-i-x-i-_1-set_2-set.csv"
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    line = hostile_line()
    steps = [step for step in line["steps"] if step["label"] == "redundant"]
    assert [(int(r["start"]), int(r["end"])) for r in rows] == [
        (step["start"], step["end"])
        for step in steps  # in characters, beyond U+FFFF too
    ]
    assert [row["text"] for row in rows] == [HOSTILE[0], HOSTILE[2]]
    assert [row["step"] for row in rows] == ["1", "3"]
    for column, model in (("score", 0), ("beside_score", 1)):
        exact = exact_ratios(two_file, 6, 0, model)
        np.testing.assert_allclose([float(r[column]) for r in rows], exact[[0, 2]], rtol=1e-4)
        ranks = rankdata(-exact, method="min")[[0, 2]]
        assert [float(r[column.replace("score", "rank")]) for r in rows] == ranks.tolist()
    name, content = saved(opened, "json")
    found = json.loads(content)
    assert found["kfh"]["kind"] == "viewer steps" and found["labels"] == ["redundant", "no label"]
    assert [{k: str(v) for k, v in step.items()} for step in found["steps"]] == rows
    opened.close()


@pytest.mark.slow
def test_saved_pictures_are_drawn_in_the_page(browser: Any, two_file: Path) -> None:
    opened = Opened(browser, two_file, "dark")
    opened.page.locator("#list li").nth(6).click()
    opened.page.keyboard.press("1")
    opened.page.keyboard.press("e")
    _, content = saved(opened, "svg")
    picture = ElementTree.fromstring(content)
    name = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in picture.iter(f"{name}text")]
    assert line_of(texts, "t/<i>x</i>") and line_of(texts, "The head set of other: SRA")
    assert len([bar for bar in picture.iter(f"{name}g") if bar.get("opacity") == "0.15"]) == 4
    assert {part.tag.removeprefix(name) for part in picture.iter()} <= {
        "svg", "rect", "text", "g", "circle", "path",
    }  # fmt: skip
    assert picture[0].get("fill") == "#17181b"  # as it is seen: dark
    _, content = saved(opened, "png")
    assert content.startswith(b"\x89PNG")
    size = [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)]
    assert size == [2 * int(picture.get(side, "0")) for side in ("width", "height")]
    assert opened.texts("#saved")[0].endswith(".png.")
    opened.close()


def line_of(texts: list[str | None], start: str) -> bool:
    return any(text is not None and text.startswith(start) for text in texts)
