"""The runs in Chromium: each state is said, runs are compared, a training's curves grow."""

# ruff: noqa: F811  (fixtures are arguments of the same name)
from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chromium_pipe import Chromium
from test_web_routes import finished_run
from tiny_project import make_project
from web_pages import (  # noqa: F401  (fixtures)
    browser,
    chromium,
    complaints,
    contract_of,
    folder,
    page,
    requested,
    runs,
    server,
    state,
    texts,
    visit,
)
from web_stand_in import Server, Spoken, stand_in

from tunesmith.run import Run
from tunesmith.serve.guard.access import Access

pytestmark = pytest.mark.system


def test_the_list_says_each_state_and_leads_to_a_run(page: Chromium, server: Server) -> None:
    visit(page, f"{server.address}/runs")
    page.until("document.querySelectorAll('.list tbody tr').length == 4")
    found = dict(zip(texts(page, ".list .name"), texts(page, ".list .chip"), strict=True))
    assert found == {"first": "done", "second": "done", "stopped": "stopped", "failed": "failed"}
    page.value("location.hash = 'run=failed'")
    page.until("document.querySelector('.proofs')")
    assert "the loss is NaN" in texts(page, ".stop pre")[0]
    assert texts(page, ".next code")[0].startswith("mend what is said above")
    assert texts(page, ".proofs .chip") == ["✗ failed", "✓ passed"]  # what failed comes first
    assert "0.5 (limit 0.1)" in texts(page, ".proofs td")[1]
    assert page.value("[...document.querySelectorAll('.chart')].filter(one => !one.hidden).length") >= 4
    page.value("location.hash = 'run=stopped'")
    page.until("document.querySelector('h1').textContent == 'stopped' && document.querySelector('.warning')")
    assert "tunesmith run" in texts(page, ".next code")[0]
    page.value("location.hash = 'run=nosuch'")
    page.until("document.querySelector('.stop')")
    assert "no run of this name" in texts(page, ".stop")[0]


def test_two_runs_are_compared(page: Chromium, server: Server) -> None:
    visit(page, f"{server.address}/runs")
    page.until("document.querySelectorAll('.list tbody tr').length == 4")
    for name in ("second", "first"):
        page.value(f"document.querySelector('input[aria-label=\"Compare {name}\"]').click()")
    page.value("document.querySelector('.buttons button').click()")
    page.until("document.querySelector('.found')", 60)
    assert "first is better than second" in texts(page, ".found li")[0]
    assert page.value("document.querySelectorAll('.chart .line').length") >= 4
    assert complaints(page) == []


def test_the_curve_of_a_training_that_runs_grows(page: Chromium, folder: Path) -> None:
    """A real training, looked at while it runs, until it is stopped."""
    runs = folder / "live"
    train = {"epochs": 400, "log_every": 1, "evaluate_every": 6, "save_every": 50}
    recipe = make_project(folder / "project", rows=48, name="live", train=train)
    command = [
        sys.executable,
        "-m",
        "tunesmith",
        "run",
        str(recipe),
        "--runs-dir",
        str(runs),
        "--until",
        "train",
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child,
        Server(stand_in(runs, contract_of(runs), [Spoken("any")])) as server,
    ):
        try:
            visit(page, f"{server.address}/runs")
            page.until("document.querySelector('.list a')", 60)  # the list sees it come
            page.value("document.querySelector('.list a').click()")
            page.until("document.querySelector('.chart.big .plot .line')", 90)
            begun = page.value(
                "document.querySelector('.chart.big .plot path').getAttribute('d').split('L').length"
            )
            page.until("/about \\d+:\\d\\d:\\d\\d left/.test(document.body.textContent)", 60)
            assert page.value(
                "!document.querySelector('progress').hidden && document.querySelector('progress').value > 0"
            )
            assert "running: train" in texts(page, ".calm b")[0]
            more = f"document.querySelector('.chart.big .plot path').getAttribute('d').split('L').length > {begun + 5}"
            page.until(more, 60)
            page.until(
                "document.querySelectorAll('.chart.big .plot .dashed').length", 60
            )  # validations came too
            curves = [url for url in requested(page) if "/ui/curve" in url]
            assert len(curves) >= 3 and all("after=" in url for url in curves)
            assert complaints(page) == []
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)
        page.until(
            "[...document.querySelectorAll('.warning b')].some(one => one.textContent.startsWith('stopped'))",
            30,
        )
        assert "tunesmith run" in texts(page, ".next code")[0]
        logged = len((runs / "live" / "metrics.jsonl").read_text().splitlines())
        page.value("location.hash = ''")
        page.until("document.querySelector('.list a')")
        page.value("location.hash = 'run=live'")
        page.until("document.querySelector('.chart.big .plot .line')")
        drawn = page.value(
            "document.querySelector('.chart.big .plot path').getAttribute('d').split('L').length"
        )
        assert drawn == logged


def test_there_is_no_run_yet(page: Chromium, folder: Path) -> None:
    with Server(stand_in(folder / "none", contract_of(folder / "none"), [Spoken("any")])) as server:
        visit(page, f"{server.address}/runs")
        page.until("document.querySelector('.calm')")
        assert "tunesmith run" in texts(page, ".next code")[0]


def test_one_odd_run_hides_no_other_and_one_that_goes_is_said_to_be_gone(
    page: Chromium, folder: Path
) -> None:
    runs = folder / "odd"
    names = ["a#b&c=d %41", "no figure", "\u202egnp", "x" * 200]
    for name in names:
        finished_run(runs / name, name="tiny")
    odd = Run(runs / "no figure")
    headline = {"metric": "mine", "base": math.nan, "tuned": 0.3, "difference": {"value": math.nan}, "n": 3}
    odd.report.mkdir(exist_ok=True)
    (odd.report / "report.json").write_text(json.dumps({"headline": headline}))
    working = finished_run(runs / "working")
    working.write_state(phase="train", step=40, steps=120)
    with working.lock(), Server(stand_in(runs, contract_of(runs), [Spoken("any")])) as server:
        visit(page, f"{server.address}/runs")
        page.until("document.querySelectorAll('.list tbody tr').length == 5")
        assert "– → 0.3 mine" in texts(page, ".list td")
        page.size(1280, 300)
        page.value("document.querySelector('.list input').click()")
        assert (
            page.value("document.querySelector('.chosen').getBoundingClientRect().bottom") <= 300
        )  # in sight
        for _ in range(14):
            page.press("Tab")
            assert page.value(
                "(one => !one.closest('.list') || one.getBoundingClientRect().bottom <="
                " document.querySelector('.chosen').getBoundingClientRect().top)(document.activeElement)"
            )  # and hides nothing that has the focus
        page.size(1280)
        for name in names:
            page.value(
                f"[...document.querySelectorAll('.list a')].find(one => one.textContent == {name!r}).click()"
            )
            page.until(
                f"document.querySelector('h1').textContent == {name!r} && document.querySelector('.proofs')"
            )
            page.value("location.hash = ''")
            page.until("document.querySelector('.list')")
        assert complaints(page) == []
        page.value("location.hash = 'run=working'")
        page.until("document.querySelector('.calm') && document.querySelector('.chart.big .line')")
        shutil.rmtree(working.path)
        page.until("document.querySelector('.stop')")
        assert "there is no run of this name" in texts(page, ".stop")[0]
        assert not texts(page, ".calm") and not page.value(
            "document.querySelector('.chart').checkVisibility()"
        )
        asked = len(requested(page))
        time.sleep(2.5)
        page.value("1")
        assert len(requested(page)) == asked  # and nobody asks for it any more
    page.value("location.hash = ''")  # the server has gone, too
    page.until("document.querySelector('#banner').textContent.includes('does not answer')")
    assert texts(page, "h1") == ["Runs"] and not texts(page, ".stop:not(#banner *)")


def test_a_session_that_has_ended_leads_to_the_form_and_back(page: Chromium, folder: Path) -> None:
    """As after a restart of the server: its sessions are its own, and its token may be another."""
    tokens = ["5f1c" * 8 + "0123456789abcdef", "a7e2" * 8 + "0123456789abcdef"]
    state = stand_in(folder / "guarded", contract_of(folder / "guarded"), [Spoken("any")])
    state.access = Access((tokens[0],))
    with Server(state) as server:
        visit(page, f"{server.address}/runs")
        log_in(page, tokens[0])
        page.until("document.querySelector('.calm')")
        state.access = Access((tokens[1],))
        page.until("document.querySelector('#banner a')")
        assert "wants its token" in texts(page, "#banner")[0]
        page.value("document.querySelector('#banner a').click()")
        log_in(page, tokens[0])
        page.until("document.querySelector('[role=alert]:not(#banner)')")  # no longer the token
        time.sleep(1.1)  # how long a wrong one makes the next wait
        log_in(page, tokens[1])
        page.until("document.querySelector('.calm')")
        assert page.value("location.pathname") == "/runs"


def log_in(page: Chromium, token: str) -> None:
    page.until("document.querySelector('#token') && document.readyState == 'complete'")
    page.write("#token", token)
    page.value("document.querySelector('button').click()")
