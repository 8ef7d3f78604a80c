"""Both pages in Chromium with hostile texts: they stay texts, and the policy stops what a page would miss."""

# ruff: noqa: F811  (fixtures are arguments of the same name)
from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from chromium_pipe import Chromium
from test_report_browser import OPEN_ALL
from test_web_routes import SCHEMA, finished_run
from web_pages import (  # noqa: F401  (fixtures)
    COLUMNS,
    answered,
    browser,
    chromium,
    complaints,
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

from tunesmith.contract import Contract
from tunesmith.example import Example, Message
from tunesmith.rows import write_rows

pytestmark = pytest.mark.system

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'><svg/onload=alert(3)>",
    "javascript:alert(4)",
    "[a](javascript:alert(5)) <a href='http://192.0.2.1/'>link</a>",
    "</textarea></pre></script><iframe src='http://192.0.2.1/'></iframe>",
    "<style>*{display:none}</style><base href='http://192.0.2.1/'>",
    "{{constructor.constructor('alert(6)')()}} ${alert(7)} \u202egnp.exe \u2028\u2029\x00",
    "<meta http-equiv=refresh content='0;url=http://192.0.2.1/'>",
    "__proto__",
)


def test_hostile_answers_rows_runs_recipes_and_logs_stay_texts(page: Chromium, folder: Path) -> None:
    runs = folder / "hostile"
    runs.mkdir()
    bad = "".join(HOSTILE)
    name = "<img src=x onerror=alert(8)>"[:60].replace("/", "")
    run = finished_run(runs / name, name="tiny")
    rows = (run.data / "validation.jsonl").read_text("utf-8").splitlines()
    contract = Contract.load(run.contract_folder)
    nasty = [
        Example(
            bad,
            (Message("user", bad), Message("assistant", json.dumps({"site": bad}), learned=True)),
            bad,
            {bad[:60]: bad},
        )
        for _ in rows
    ]
    write_rows(run.data, "validation", [(row, contract.encode(row)) for row in nasty])
    run.log_file.write_text(bad)
    proof = {"name": bad, "passed": False, "figure": bad, "limit": bad, "detail": bad}
    run.write_json(run.proofs_file, {"proofs": [proof]})
    run.write_json(run.lock_file, {"recipe": {bad: bad}})
    run.write_state(phase=bad, ended={"exit": 3, "phase": bad, "error": bad})
    answer = json.dumps(dict.fromkeys(HOSTILE, bad) | {"site": bad})
    facts = {"run": name, "base": bad, "engine": bad}
    spoken = [
        Spoken(bad, lambda _: answer, run=run, schema=SCHEMA, facts=facts, detail=bad),
        Spoken("base", lambda _: bad, run=run),
    ]
    with Server(stand_in(runs, contract, spoken)) as server:
        visit(page, f"{server.address}/")
        page.until(COLUMNS)
        page.until("!document.querySelector('#row').hidden")
        page.value("document.querySelector('#row').open = true; document.querySelector('#after').click()")
        page.until("document.querySelector('#prompt').value")
        page.value("document.querySelector('#go').click()")
        answered(page)
        page.until("!document.querySelector('#fields').hidden")
        page.value("document.querySelector('.column.second .bad').click()")
        page.until("document.querySelector('.column.second .told').textContent")
        assert (
            bad.replace("\x00", "") in texts(page, ".answer")[1].replace("\x00", "")
            or "<script>" in texts(page, ".answer")[1]
        )
        inert(page, server.address)
        visit(page, f"{server.address}/runs")
        page.until("document.querySelector('.list a')")
        inert(page, server.address)
        page.value("document.querySelector('.list a').click()")
        page.until("document.querySelector('.proofs')")
        page.value(OPEN_ALL)
        page.until("document.querySelector('.log').textContent")
        assert "onerror" in texts(page, "h1")[0] and "<script>" in texts(page, ".log")[0]
        inert(page, server.address)


def inert(page: Chromium, address: str) -> None:
    """Nothing of a text has become an element, a link, a request or a dialog."""
    page.value(
        "document.querySelectorAll('main *').forEach(one =>"
        " one.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})))"
    )
    assert (
        page.value(
            "document.querySelectorAll('main :is(script, img, iframe, style, base, meta, object)').length"
        )
        == 0
    )
    assert page.value("document.querySelectorAll('script').length") == 1
    hrefs = page.value("[...document.querySelectorAll('a')].map(one => one.getAttribute('href'))")
    assert all(one.startswith(("/", "#")) for one in hrefs), hrefs
    assert (
        page.value(
            "[...document.querySelectorAll('*')].some(one => [...one.attributes].some(a => a.name.startsWith('on')))"
        )
        is False
    )
    assert page.seen("Page.javascriptDialogOpening") == []
    assert [url for url in requested(page) if not url.startswith(address)] == []
    assert complaints(page) == []


def test_the_policy_stops_what_the_pages_would_miss(page: Chromium, server: Server) -> None:
    """The mutant: a page that makes HTML of a text is stopped by trusted types, a script by the policy."""
    visit(page, f"{server.address}/")
    page.until(COLUMNS)
    made = page.value(
        "(() => { try { document.querySelector('h1').innerHTML = '<img src=x onerror=alert(1)>'; return 'made'; }"
        " catch (error) { return error.name; } })()"
    )
    assert made == "TypeError"
    page.value(
        "(() => { const one = document.createElement('img'); one.src = 'http://192.0.2.1/x';"
        " document.body.append(one); })()"
    )
    time.sleep(0.5)
    assert page.seen("Page.javascriptDialogOpening") == [] and complaints(page) != []  # and the check sees it


def test_a_report_can_run_its_script_but_not_reach_the_server(
    page: Chromium, server: Server, runs: Path
) -> None:
    report = runs / "second" / "report" / "report.html"
    report.parent.mkdir(exist_ok=True)
    report.write_text(
        "<!doctype html><title>report</title><p>here</p><script>document.title = 'ran'; window.told = 'waiting';"
        "fetch('/ui/runs').then(() => { told = 'reached'; }, () => { told = 'stopped'; });"
        "try { localStorage.x = 1; document.title = 'stored'; } catch { document.title += ', shut in'; }</script>"
    )
    visit(page, f"{server.address}/ui/report?name=second")
    page.until("window.told != 'waiting'")
    assert page.value("[document.title, told, origin]") == ["ran, shut in", "stopped", "null"]
