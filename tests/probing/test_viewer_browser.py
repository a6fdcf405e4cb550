"""The trace viewer in headless Chromium: what it shows, keys, markup, time and memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import trace_line
from viewer_pages import (
    HOSTILE,
    Opened,
    blocks,
    codes,
    exact_ratios,
    hostile_line,
    large_page,
    ratios_of,
    unpack,
)

from probing.viewer.pack import TOKEN_SCALE
from probing.viewer.page import ViewerConfig, write_page

pytest_plugins = ["viewer_pages"]


def test_page_shows_the_trace(opened: Opened, page_file: Path) -> None:
    line = trace_line(0, steps=4)
    steps = [line["response"][s["start"] : s["end"]] for s in line["steps"]]
    assert opened.texts(".step .text") == steps
    assert opened.texts(".step .label") == [s["label"] for s in line["steps"]]
    assert opened.texts(".step .ratio") == ratios_of(page_file, 0, 0)
    assert opened.texts("#problem") == ["Add 0."]
    assert opened.texts("#answer") == ["\n\nThe sum = 0, \\boxed{0}"]
    assert len(opened.texts("#list li")) == 7
    assert len(opened.texts("#strip .bar")) == 4


def test_picker_changes_numbers_and_colours(opened: Opened, page_file: Path) -> None:
    page, index = opened.page, blocks(page_file)["index"]
    for view, act in (
        (5, lambda: page.select_option("#head", "5")),
        (9, lambda: page.click('#grid [data-view="9"]')),
        (10, lambda: page.keyboard.press("l")),
        (9, lambda: page.keyboard.press("h")),
        (8, lambda: page.click("#head-back")),
    ):
        act()
        numbers = ratios_of(page_file, 0, view)
        assert opened.texts(".step .ratio") == numbers
        exact = exact_ratios(page_file, 0, view)
        ranks = [f"rank {1 + (exact > ratio).sum()}" for ratio in exact]
        assert opened.texts(".step .rank") == ranks
        above = page.eval_on_selector_all(
            ".step .pane", "nodes => nodes.map(n => [n.classList.contains('above'), "
            "Number(n.style.getPropertyValue('--a'))])"
        )  # fmt: skip
        for (up, alpha), ratio in zip(above, exact, strict=True):
            assert up == (ratio > 1)
            assert alpha == pytest.approx(min(abs(np.log2(ratio)) / 2, 1), abs=1e-3)
        sra = (codes(index["traces"][0]["models"][0]["sra"], "u2", 1)[0][view] - 1) / 65534
        assert f"SRA {sra:.3f}" in opened.texts("#says")[0]
        picked = page.get_attribute(f'#grid [data-view="{view}"]', "aria-selected")
        assert picked == "true" and page.input_value("#head") == str(view)
    colour = "n => getComputedStyle(n).backgroundColor"
    before = page.eval_on_selector(".step .text", colour)
    page.select_option("#head", "2")
    page.wait_for_timeout(300)
    assert page.eval_on_selector(".step .text", colour) != before


def test_keys(opened: Opened) -> None:
    page = opened.page
    shown = lambda: opened.texts("#meta .id")[0]  # noqa: E731
    for key, expected in (("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowLeft", 0), ("k", 0)):
        page.keyboard.press(key)
        assert shown() == f"t/{expected}"
    for key, expected in (("n", "0"), ("n", "1"), ("n", "2"), ("p", "1")):
        page.keyboard.press(key)
        assert page.get_attribute(".step:focus", "data-step") == expected
        assert page.get_attribute(".bar[aria-current]", "data-step") == expected
    page.keyboard.press("/")
    page.keyboard.type("add 3")
    assert opened.texts("#list .id") == ["t/3"]  # letters in the field are no commands
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    assert shown() == "t/3"
    page.fill("#search", "")
    page.select_option("#filter", "false")
    assert opened.texts("#list .id") == ["t/<i>x</i>"]
    page.select_option("#filter", "all")
    page.click('.bar[data-step="3"]')
    assert page.get_attribute(".step:focus", "data-step") == "3"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("j")  # nothing behind the dialog moves
    assert shown() == "t/3"
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()


def test_list_sorts_by_sra_of_the_picked_head(opened: Opened, page_file: Path) -> None:
    index = blocks(page_file)["index"]
    opened.page.select_option("#head", "7")
    opened.page.select_option("#sort", "low")
    shown = [float(text) for text in opened.texts("#list .sra")]
    values = [(codes(t["models"][0]["sra"], "u2", 1)[0][7] - 1) / 65534 for t in index["traces"]]
    assert shown == pytest.approx(sorted(values), abs=6e-4)
    assert len(set(values)) > 2


def test_dark_and_light(browser: Any, page_file: Path) -> None:
    colour = "() => getComputedStyle(document.body).backgroundColor"
    light, dark = (Opened(browser, page_file, scheme) for scheme in ("light", "dark"))
    first, second = light.page.evaluate(colour), dark.page.evaluate(colour)
    assert first != second  # as the system wishes
    light.page.keyboard.press("d")
    dark.page.click("#dark")
    assert (light.page.evaluate(colour), dark.page.evaluate(colour)) == (second, first)
    light.close()
    dark.close()


def test_tokens_on_hover(opened: Opened, page_file: Path) -> None:
    page = opened.page
    assert page.locator(".cell").count() == 0  # made when looked at
    page.locator(".step .text").nth(1).hover()
    assert page.locator(".step").nth(1).locator(".cell").count() > 5
    assert page.locator(".step").nth(0).locator(".cell").count() == 0
    line = trace_line(0, steps=4)
    span = line["steps"][1]
    text = line["response"][span["start"] : span["end"]]
    assert opened.texts(".step .text")[1] == text
    page.locator(".step.live .cell").nth(2).hover()
    block = blocks(page_file)["trace-0"]["models"][0]
    number = int(page.locator(".step.live .cell").nth(2).get_attribute("data-cell"))
    start, end, _ = unpack(block["cells"])[number]
    rows = blocks(page_file)["index"]["models"][0]["tokenViews"]
    ratio = TOKEN_SCALE.decode(codes(block["mass"], "u1", rows))[0, number]
    assert page.locator("#tip").is_visible()
    assert opened.texts("#tip-text")[0] == line["response"][start:end].replace(" ", "␣")
    assert float(opened.texts("#tip-mass")[0].split()[0]) == pytest.approx(ratio, rel=0.05)
    page.mouse.move(2, 2)
    assert not page.locator("#tip").is_visible()
    page.keyboard.press("t")
    page.wait_for_function("() => document.querySelectorAll('.pane.built').length === 4")
    assert "".join(opened.texts(".step .text")) == line["response"].split("</think>")[0]
    page.keyboard.press("n")
    page.keyboard.press(".")
    assert page.locator("#tip").is_visible()
    page.select_option("#head", "12")  # a head without tokens: their colours go, the button too
    assert page.locator("#tokens").is_disabled()
    assert page.eval_on_selector(".cell", "n => getComputedStyle(n).backgroundColor").endswith(
        ", 0)"
    )


def test_markup_is_shown_as_text(opened: Opened) -> None:
    page = opened.page
    page.locator("#list li").nth(6).click()
    line = hostile_line()
    for built in (False, True):
        if built:
            page.keyboard.press("t")
            page.wait_for_function("() => document.querySelectorAll('.pane.built').length === 4")
        assert opened.texts(".step .text") == HOSTILE
    assert opened.texts("#problem") == [line["problem"]]
    assert opened.texts("#meta .id") == [line["id"]]
    assert opened.texts("#answer") == [line["response"].split("</think>", 1)[1]]
    smile = page.locator(".cell", has_text="😀").first
    smile.hover()
    assert opened.texts("#tip-text")[0].endswith("😀")
    assert page.evaluate("() => window.pwned") is None
    assert (
        page.locator(
            "img, #steps i, #list i, .head i, main script, body > script:not([type])"
        ).count()
        == 0
    )
    assert len(opened.texts("script:not([type])")) == 1


def test_no_tokens_is_said(browser: Any, viewer_probe: Path, tmp_path: Path) -> None:
    path = write_page(ViewerConfig(viewer_probe, tmp_path / "x.html", tokens=False)).path
    made = Opened(browser, path)
    assert "made with --no-tokens" in made.texts("#about")[0]
    assert made.page.locator("#tokens").is_disabled()
    made.page.locator(".step .text").nth(1).hover()
    made.page.keyboard.press("t")
    assert made.page.locator(".cell").count() == 0
    made.close()


# 200 traces of 5,000 tokens and 90 steps, 28 × 12 heads; CPU seconds of the page's main thread,
# since the wall clock of a test measures whatever runs beside it (docs/LOG.md has both).
OPEN_SECONDS, SWITCH_SECONDS, MEMORY_BYTES = 2.0, 0.3, 500e6


def renderer_memory(browser: Any) -> float:
    """Resident bytes of the largest renderer; 0 where /proc does not tell."""
    found = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    sizes = [0.0]
    for process in found:
        status = Path(f"/proc/{process['id']}/status")
        if process["type"] == "renderer" and status.exists():
            match = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
            sizes += [float(match[1]) * 1024] if match else []
    return max(sizes)


@pytest.mark.slow
def test_two_hundred_long_traces(browser: Any, tmp_path: Path) -> None:
    written = large_page(tmp_path)
    (model,) = written.models
    assert (written.traces, model.heads, model.token_heads) == (200, 336, 7)
    made = Opened(browser, written.path)
    opening = made.cpu()
    memory = renderer_memory(browser)
    taken = {}
    for key in ("j", "l", "t", "k"):  # the first trace with its tokens comes last
        before = made.cpu()
        made.page.keyboard.press(key)
        made.page.evaluate("() => new Promise(requestAnimationFrame)")
        made.page.evaluate("() => new Promise(requestAnimationFrame)")
        taken[key] = round(made.cpu() - before, 3)
    assert made.texts("#place") == ["1 of 200"] and len(made.texts(".step")) == 90
    assert made.page.locator(".pane.built").count() < 40  # those in sight, not all
    print(
        f"{written.size / 1e6:.1f} MB, renderer {memory / 1e6:.0f} MB; opened in "
        f"{made.seconds:.1f} s, {opening:.2f} CPU s; CPU s by key: {taken}"
    )
    assert opening < OPEN_SECONDS
    assert memory < MEMORY_BYTES
    assert max(taken.values()) < SWITCH_SECONDS
    made.close()
