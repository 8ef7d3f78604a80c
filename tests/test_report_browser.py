"""report.html in Chromium, by keyboard: hostile texts stay inert, examples filter, tables sort, a phone holds it."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium_pipe import Chromium
from PIL import Image
from test_report import TEST, TRAIN, fill
from test_report_hostile import hostile_run
from test_report_page import browser  # noqa: F401  (a fixture)
from tiny_run import guess, recipe, write_curves, write_predictions, write_run

from tunesmith.evaluate.report import write_report

sys.path.insert(0, os.fspath(Path(__file__).parent.parent / "scripts"))
from report_pictures import pictures

pytestmark = pytest.mark.system

# every text in sight against what lies behind it, half-transparent layers laid on each other (WCAG 2.1)
CONTRAST = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = (top, below) => {
    const alpha = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map(i => top[i] * alpha + below[i] * (1 - alpha));
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(x => x / 255).map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const one of document.querySelectorAll('body *')) {
    if (['SCRIPT', 'OPTION', 'STYLE'].includes(one.tagName) || one.closest('svg') || !one.checkVisibility()) continue;
    if (![...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    const layers = [];
    for (let at = one; at; at = at.parentElement) layers.unshift(parse(getComputedStyle(at).backgroundColor));
    const ground = layers.reduce((below, top) => over(top, below), [255, 255, 255]);
    const ink = over(parse(getComputedStyle(one).color), ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push([one.tagName, one.className, one.textContent.slice(0, 30)]);
  }
  return found;
})()
"""
OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"
VISIBLE = "[...document.querySelectorAll('#rows > details')].filter(row => !row.hidden)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    run = write_run(folder / "tiny", TRAIN, test=TEST)
    fill(run, TEST)
    write_curves(run)
    rng = random.Random(5)
    write_predictions(run.predictions / "3-shot.jsonl", TEST, [guess(row, rng, 0.6) for row in TEST])
    write_report(recipe(), run)
    return run.report / "report.html"


@pytest.fixture(scope="module")
def chromium(browser: str, folder: Path) -> Iterator[Chromium]:  # noqa: F811
    with Chromium(browser, folder) as page:
        yield page


@pytest.fixture
def opened(chromium: Chromium, report: Path) -> Chromium:
    chromium.size(1280)
    chromium.scheme("light")
    chromium.open(report)
    return chromium


def focus(page: Chromium, selector: str) -> None:
    page.value(f"document.querySelector({selector!r}).focus()")


def test_the_keyboard_reaches_the_findings_first(opened: Chromium) -> None:
    opened.press("Tab")
    assert opened.value("document.activeElement.className") == "skip"
    assert opened.value("document.activeElement.getBoundingClientRect().left") >= 0
    assert opened.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    opened.press("Enter")
    assert opened.value("location.hash") == "#findings"
    opened.press("Tab")  # what comes next stands behind the findings' beginning
    assert opened.value(
        "!!(document.getElementById('findings').compareDocumentPosition(document.activeElement) & 4)"
    )


def test_examples_are_ordered_and_filtered_by_keyboard(opened: Chromium) -> None:
    shown = f"{VISIBLE}.map(row => Number(row.dataset.worst))"
    assert opened.value(shown) == sorted(opened.value(shown))
    focus(opened, "input[name=order]")
    opened.press("ArrowDown")
    by_harm = opened.value(f"{VISIBLE}.map(row => Number(row.dataset.harmful))")
    assert by_harm == list(range(len(by_harm)))
    before = len(by_harm)
    focus(opened, "#kind")
    opened.press("ArrowDown")
    kind = opened.value("document.getElementById('kind').value")
    assert kind == "0"
    kinds = opened.value(f"{VISIBLE}.map(row => row.dataset.kinds)")
    assert kinds and all(kind in one.split() for one in kinds)
    promised = opened.value("document.getElementById('kind').selectedOptions[0].textContent")
    assert f"({len(kinds)}, " in promised
    assert opened.value("document.getElementById('told').textContent").startswith(f"{len(kinds)} row")
    focus(opened, "#unfold")
    opened.press(" ")
    assert opened.value(f"{VISIBLE}.every(row => row.open)")
    opened.press(" ")
    assert not opened.value(f"{VISIBLE}.some(row => row.open)")
    focus(opened, "#kind")
    opened.press("ArrowUp")
    assert len(opened.value(f"{VISIBLE}.map(row => 1)")) == before


def test_a_row_unfolds_by_keyboard(opened: Chromium) -> None:
    focus(opened, "#rows > details:nth-child(3) > summary")
    opened.press("Enter")
    assert opened.value("document.querySelector('#rows > details:nth-child(3)').open")


def test_tables_sort_by_keyboard_and_totals_stay_last(opened: Chromium) -> None:
    table = "#systems table"
    focus(opened, f"{table} th:nth-child(3) button")
    cells = (
        f"[...document.querySelectorAll('{table} tbody tr')].map(row => row.cells[2].firstChild.textContent)"
    )
    opened.press("Enter")
    values = [float(one) for one in opened.value(cells)]
    assert values == sorted(values, reverse=True) and len(set(values)) > 2
    opened.press("Enter")
    assert [float(one) for one in opened.value(cells)] == sorted(values)
    assert opened.value(f"document.querySelector('{table} th:nth-child(3)').ariaSort") == "ascending"
    fields = "#fields table"
    focus(opened, f"{fields} th:first-child button")
    opened.press("Enter")
    names = opened.value(
        f"[...document.querySelector('{fields}').tBodies[0].rows].map(row => row.cells[0].textContent)"
    )
    assert names == ["treatment", "stage", "site", "all fields"]


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_the_page_is_never_wider_than_its_window(opened: Chromium, width: int) -> None:
    opened.size(width)
    opened.value(OPEN_ALL)
    assert opened.value("document.documentElement.scrollWidth") <= width
    if width < 600:  # and what is wider scrolls by itself
        assert opened.value(
            "[...document.querySelectorAll('.scroll')].some(one => one.scrollWidth > one.clientWidth)"
        )
    opened.value(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<div style=width:1400px>wide</div>')"
    )
    assert opened.value("document.documentElement.scrollWidth") > width  # it would be seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(opened: Chromium, scheme: str) -> None:
    opened.scheme(scheme)
    opened.value(OPEN_ALL)
    assert opened.value(CONTRAST) == []
    dark = opened.value("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    ink = opened.value("getComputedStyle(document.body).color")
    fills = opened.value(
        "[...new Set([...document.querySelectorAll('svg text')].map(t => getComputedStyle(t).fill))]"
    )
    assert ink in fills and not {"rgb(0, 0, 0)"} & set(fills)  # figures take the page's ink
    opened.value("document.querySelector('h1').style.color = '#777'")
    assert [one[0] for one in opened.value(CONTRAST)] == ["H1"]


# ---- hostile texts


def dialogs(page: Chromium) -> list[dict[str, Any]]:
    return page.seen("Page.javascriptDialogOpening")


def test_hostile_rows_run_nothing(chromium: Chromium, tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    write_report(recipe(), run)
    path = run.report / "report.html"
    chromium.open(path)
    chromium.value(OPEN_ALL)
    chromium.value("document.querySelectorAll('b, summary, td, button').forEach(one => {"
                   "one.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})); one.focus(); })")  # fmt: skip
    assert dialogs(chromium) == []
    assert chromium.value("document.title") == "tiny: base and tuned"
    assert chromium.value("document.querySelectorAll('h1').length") == 1
    assert [one for one in chromium.seen("Log.entryAdded") if one["entry"]["level"] == "error"] == []
    assert chromium.value("document.querySelectorAll('script, img, iframe').length") == 1
    assert len(chromium.value(f"{VISIBLE}.map(row => 1)")) > 1  # our script ran among them


def spoiled(path: Path, folder: Path, policy: bool) -> Path:
    """A page that forgot to escape; with its policy or without."""
    text = path.read_text("utf-8").replace(
        "<main>", "<main><img src=x onerror=alert(1)><script>alert(2)</script>", 1
    )
    if not policy:
        begin = text.index('<meta http-equiv="Content-Security-Policy"')
        text = text[:begin] + text[text.index(">", begin) + 1 :]
    out = folder / "spoiled.html"
    out.write_text(text, "utf-8")
    return out


def test_the_policy_stops_what_escaping_would_miss(chromium: Chromium, report: Path, tmp_path: Path) -> None:
    chromium.open(spoiled(report, tmp_path, policy=True))
    assert dialogs(chromium) == []
    assert chromium.value(f"{VISIBLE}.length") > 0
    chromium.open(spoiled(report, tmp_path, policy=False))
    assert dialogs(chromium) != []  # without it they run: the check sees them


# ---- pictures


def test_four_pictures_show_the_report(report: Path, browser: str, tmp_path: Path) -> None:  # noqa: F811
    made = pictures(report, tmp_path / "shots", height=2400)
    assert [path.stem for path in made] == ["desktop-light", "desktop-dark", "phone-light", "phone-dark"]
    for path in made:
        with Image.open(path) as whole:
            picture = whole.convert("RGB")
            assert picture.width == (390 if "phone" in path.stem else 1280)
            assert len(picture.getcolors(1 << 24) or []) > 50
            bright = sum(picture.getpixel((3, 1200))) > 380  # type: ignore[arg-type]
            assert bright == path.stem.endswith("light")
