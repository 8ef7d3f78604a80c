"""How both pages look and how they are reached: widths, contrast in both schemes, the keyboard, less motion."""

# ruff: noqa: F811  (fixtures are arguments of the same name)
from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium_pipe import Chromium
from test_report_browser import CONTRAST, OPEN_ALL
from web_pages import (  # noqa: F401  (fixtures)
    COLUMNS,
    answered,
    ask,
    browser,
    choose,
    chromium,
    complaints,
    folder,
    page,
    runs,
    server,
    state,
    texts,
    visit,
)
from web_stand_in import Server

pytestmark = pytest.mark.system


def states(page: Chromium, server: Server) -> Iterator[str]:
    """Both pages in the states that matter, one after another."""
    visit(page, f"{server.address}/")
    page.until(COLUMNS)
    yield "begun"
    page.value("document.querySelector('#row').open = true; document.querySelector('#after').click()")
    page.until("document.querySelector('#prompt').value")
    page.value("document.querySelector('#go').click()")
    answered(page)
    page.value(OPEN_ALL + "; document.querySelectorAll('.good, .bad').forEach(one => one.click())")
    page.value("document.querySelector('.judge button:nth-of-type(3)').click()")
    page.until("!document.querySelector('#feedback').hidden")
    yield "answered"
    choose(page, 0, "endless")
    choose(page, 1, "broken")
    ask(page, "long " * 50 + "x" * 4000)
    page.until("document.querySelector('.first .answer').textContent.length > 500")
    page.press("Escape")
    answered(page)
    yield "long"
    visit(page, f"{server.address}/runs")
    page.until("document.querySelectorAll('.list tbody tr').length")
    yield "runs"
    for name in ("failed", "first"):
        page.value(f"location.hash = 'run={name}'")
        page.until(
            f"document.querySelector('h1').textContent == '{name}' && document.querySelector('.proofs')"
        )
        page.value(OPEN_ALL)
        yield name
    page.value("location.hash = 'compare=first&compare=second'")
    page.until("document.querySelector('.found')", 60)
    page.value(OPEN_ALL)
    yield "compared"


def test_no_page_is_wider_than_its_window_and_every_text_stands_out(page: Chromium, server: Server) -> None:
    for shown in states(page, server):
        for width in (360, 1280):
            page.size(width)
            for scheme in ("light", "dark"):
                page.scheme(scheme)
                page.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 60)))")
                assert page.value(CONTRAST) == [], (shown, width, scheme)
                assert page.value("document.documentElement.scrollWidth") <= width, (shown, width)
        page.size(1280)
    page.value(
        "document.body.append(Object.assign(document.createElement('p'), {textContent: 'x'.repeat(4000)}))"
    )
    assert page.value("document.documentElement.scrollWidth") > 1280  # it would be seen


def test_by_keyboard_alone(page: Chromium, server: Server) -> None:
    visit(page, f"{server.address}/")
    page.until(COLUMNS)
    page.until("document.activeElement.id == 'prompt'")
    page.send("Input.insertText", text="typed")
    reach(page, "document.activeElement.id == 'go'")
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    answered(page)
    assert page.value("document.activeElement.id") == "go"  # the keyboard's place is where it was
    reach(page, "document.activeElement.className == 'good'")
    page.press(" ")
    page.until("document.activeElement.getAttribute('aria-pressed') == 'true'")
    assert page.value("document.querySelector('#live').getAttribute('aria-live')") == "polite"
    assert "finished" in texts(page, "#live")[0]
    assert page.value("document.querySelector('.answer').closest('[aria-live]')") is None  # not each token
    visit(page, f"{server.address}/runs")
    page.until("document.querySelector('.list a')")
    reach(page, "document.activeElement.textContent == 'first'")
    page.press("Enter")
    page.until("document.querySelector('.chart.big .plot .line')")
    reach(page, "document.activeElement.className == 'plot'")
    page.press("ArrowLeft", 2)
    assert texts(page, ".chart.big .read")[0].startswith("step 115:")
    assert complaints(page) == []


def reach(page: Chromium, wanted: str) -> None:
    """Tab until it has the focus, which shows."""
    for _ in range(60):
        page.press("Tab")
        if page.value(wanted):
            return
    raise AssertionError(f"the keyboard never came to: {wanted}")


def test_less_motion_is_asked_for(page: Chromium, server: Server) -> None:
    visit(page, f"{server.address}/")
    page.until(COLUMNS)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    page.value("document.querySelector('.answer').setAttribute('aria-busy', 'true')")
    assert (
        page.value("getComputedStyle(document.querySelector('.answer'), '::after').animationName") == "none"
    )
    page.scheme("light")
    assert (
        page.value("getComputedStyle(document.querySelector('.answer'), '::after').animationName") == "blink"
    )
