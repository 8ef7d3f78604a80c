"""Both pages in Chromium: answers stream and are compared, a training's curves grow, hostile texts stay texts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium_pipe import Chromium
from test_report_browser import CONTRAST, OPEN_ALL
from test_report_page import browser  # noqa: F401  (a fixture)
from test_web_routes import SCHEMA, finished_run
from tiny_project import make_project
from tiny_run import write_byte_tokenizer
from web_stand_in import Server, Spoken, StandIn, stand_in

from tunesmith.contract import Contract
from tunesmith.example import Example, Message
from tunesmith.generate.protocol import LiveRequest
from tunesmith.rows import write_rows
from tunesmith.run import Run
from tunesmith.serve.state import ServeState

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
ASKED = "Boolean(document.querySelector('#go')) && !document.querySelector('#go').disabled"
COLUMNS = "document.querySelectorAll('.column').length"


def texts(page: Chromium, selector: str) -> list[str]:
    return list(page.value(f"[...document.querySelectorAll({selector!r})].map(one => one.textContent)"))


def visit(page: Chromium, address: str) -> None:
    """A page with its modules loaded and everything that it says of errors and requests kept."""
    page.send("Network.enable")
    page.visit(address)


def complaints(page: Chromium) -> list[Any]:
    """What the console and the policy complained of."""
    page.value("1")  # what has come meanwhile is read
    thrown = page.seen("Runtime.exceptionThrown") + page.seen("Page.javascriptDialogOpening")
    logged = [
        one["entry"] for one in page.seen("Log.entryAdded") if one["entry"]["level"] in ("error", "warning")
    ]
    said = [
        one for one in page.seen("Runtime.consoleAPICalled") if one["type"] in ("error", "warning", "assert")
    ]
    return thrown + logged + said


def requested(page: Chromium) -> list[str]:
    return [one["request"]["url"] for one in page.seen("Network.requestWillBeSent")]


def ask(page: Chromium, prompt: str) -> None:
    page.until(COLUMNS)
    page.write("#prompt", prompt)
    page.value("document.querySelector('#go').click()")


def answered(page: Chromium) -> None:
    page.until(f"{ASKED} && document.querySelectorAll('.pace span').length", 60)
    time.sleep(0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:
    made = folder / "runs"
    made.mkdir()
    finished_run(made / "first")
    finished_run(made / "second", skill=0.4)
    stopped = finished_run(made / "stopped")
    stopped.write_state(
        phase="train", step=40, steps=120, ended={"exit": 75, "phase": "train", "error": "SIGTERM"}
    )
    failed = finished_run(made / "failed")
    failed.write_state(
        phase="train", step=40, steps=120, ended={"exit": 3, "phase": "train", "error": "the loss is NaN"}
    )
    return made


@pytest.fixture(scope="module")
def state(runs: Path) -> ServeState:
    run = Run(runs / "first")
    tuned = '{"site": "liver", "treatment": "FOLFOX", "stage": "IV"}'
    base = 'Sure! {"site": "bone", "stage": 4, "mood": "good"}'
    facts = {"run": "first", "base": "starter", "engine": "transformers"}
    spoken = [
        Spoken("first", lambda _: tuned, 0.03, run, facts=facts | {"adapter": "first"}),
        Spoken("base", lambda _: base, 0.03, run, facts=facts),
        Spoken("endless", lambda _: "word " * 3000, 0.01, run, facts=facts),
        Spoken("slow", lambda _: "there at last", 0.0, state="waiting", load_seconds=4.0),
        Spoken("broken", state="failed", detail="model.safetensors is cut off"),
    ]
    return stand_in(runs, Contract.load(run.contract_folder), spoken)


@pytest.fixture(scope="module")
def server(state: ServeState) -> Iterator[Server]:
    with Server(state) as made:
        yield made


@pytest.fixture(scope="module")
def chromium(browser: str, folder: Path) -> Iterator[Chromium]:  # noqa: F811
    with Chromium(browser, folder) as page:
        yield page


@pytest.fixture
def page(chromium: Chromium) -> Chromium:
    chromium.size(1280)
    chromium.scheme("light")
    return chromium


def choose(page: Chromium, column: int, model: str) -> None:
    page.value(
        f"(one => {{ one.value = {model!r}; one.dispatchEvent(new Event('change')); }})"
        f"(document.querySelectorAll('.column select')[{column}])"
    )


# ---- the playground


def test_two_models_stream_and_their_fields_stand_side_by_side(
    page: Chromium, server: Server, runs: Path
) -> None:
    visit(page, f"{server.address}/")
    page.until(COLUMNS)
    assert page.value("[...document.querySelectorAll('.column select')].map(one => one.value)") == [
        "first",
        "base",
    ]
    page.until("!document.querySelector('#row').hidden")
    page.value("document.querySelector('#row').open = true; document.querySelector('#after').click()")
    page.until("document.querySelector('#prompt').value")
    gold = json.loads(texts(page, "#gold")[0])
    page.value("document.querySelector('#go').click()")
    page.until("document.querySelectorAll('.answer[aria-busy]').length == 2")
    page.until("document.querySelector('.answer').textContent.length > 3")
    assert page.value(f"{ASKED}") is False and len(texts(page, ".answer")[0]) < 55  # a part of it: it streams
    answered(page)
    assert texts(page, ".answer")[0] == '{"site": "liver", "treatment": "FOLFOX", "stage": "IV"}'
    for pace in texts(page, ".pace"):
        assert "first token after" in pace and "tokens/s" in pace
    page.until("document.querySelector('#fields-table tbody')")
    table = page.value(
        "[...document.querySelector('#fields-table tbody').rows].map(row => [...row.cells].map(one => one.textContent))"
    )
    lines = {row[0].removesuffix("differ"): row[1:] for row in table}
    assert {"site", "treatment", "stage", "mood"} == set(lines)
    assert "field left out" in lines["treatment"][1] and "not in the schema" in lines["mood"][1]
    assert "wrong type" in lines["stage"][1] and "has to be" in lines["stage"][1]
    assert lines["stage"][2] == gold["stage"]
    assert texts(page, "tr.differ th")[0].startswith("site")
    assert "of 3 fields agree with the gold answer" in texts(page, "#fields-note")[0]
    assert complaints(page) == []
    assert all(url.startswith(server.address) for url in requested(page))


def test_judged_answers_become_rows(page: Chromium, server: Server, runs: Path) -> None:
    visit(page, f"{server.address}/")
    ask(page, "a prompt of my own")
    answered(page)
    page.value("document.querySelector('.column.first .good').click()")
    page.until("document.querySelector('.column.first .told').textContent.startsWith('Kept as a row')")
    second = "document.querySelector('.column.second"
    page.value(f"{second} .judge button:nth-of-type(3)').click()")
    page.write(".column.second .correct textarea", '{"site": null}')
    page.value(f"{second} .correct .primary').click()")
    page.until(f"{second} .told').textContent.startsWith('Kept as a row')")
    rows = [json.loads(line) for line in (runs / "first" / "feedback.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in rows] == [texts(page, ".answer")[0], '{"site": null}']
    assert rows[0]["prompt"] == [{"role": "user", "content": "a prompt of my own"}]
    page.until("document.querySelector('#feedback').textContent.startsWith('Judged answers2 rows')")
    assert "--set tune.from_adapter" not in texts(page, "#feedback code")[0]
    assert "data.train" in " ".join(texts(page, "#feedback code"))
    page.value("document.querySelector('.column.first .good').click()")  # taken back
    page.until("document.querySelector('.column.first .told').textContent == 'Taken back.'")
    assert len((runs / "first" / "feedback.jsonl").read_text().splitlines()) == 1
    assert complaints(page) == []


def test_stop_closes_the_stream_and_the_model_stops_writing(
    page: Chromium, server: Server, state: ServeState
) -> None:
    visit(page, f"{server.address}/")
    page.until(COLUMNS)
    choose(page, 0, "endless")
    choose(page, 1, "")
    ask(page, "go on for ever")
    page.until("document.querySelector('.answer').textContent.length > 20")
    page.press("Escape")
    answered(page)
    assert "stopped by you" in texts(page, ".pace")[0]
    models = state.models
    assert isinstance(models, StandIn)
    until = time.monotonic() + 5
    while not models.live["endless"].cancelled and time.monotonic() < until:
        time.sleep(0.05)
    assert models.live["endless"].cancelled  # the engine heard of it
    written = models.live["endless"].written
    time.sleep(0.3)
    assert models.live["endless"].written <= written + 2
    assert texts(page, ".judge")[0].startswith("Good")  # what was said can be judged
    assert complaints(page) == []


def test_settings_and_a_follow_up_reach_the_model(page: Chromium, server: Server, state: ServeState) -> None:
    visit(page, f"{server.address}/")
    page.until(COLUMNS)
    page.value("document.querySelector('.settings').open = true")
    for name, value in (("temperature", "0.7"), ("top_p", "0.9"), ("max_tokens", "7"), ("seed", "42")):
        page.write(f"#{name}", value)
    page.write("#system", "Be brief.")
    ask(page, "one")
    answered(page)
    models = state.models
    assert isinstance(models, StandIn)
    request = models.live["first"].asked[-1]
    assert (request.temperature, request.top_p, request.max_tokens, request.seed) == (0.7, 0.9, 7, 42)
    assert "cut: the longest answer was reached" in texts(page, ".pace")[0]
    page.write("#prompt", "two")
    page.value("document.querySelector('#follow').click()")
    answered(page)
    said = whole(models.contract, models.live["first"].asked[-1])
    assert said.index("Be brief.") < said.index("one") < said.index("two")
    page.write("#temperature", "9")  # not sent: the field says what is wrong
    before = len(models.live["first"].asked)
    page.value("document.querySelector('#go').click()")
    time.sleep(0.3)
    assert len(models.live["first"].asked) == before and page.value(ASKED)
    assert complaints(page) == []


def test_a_model_that_loads_shows_how_far_it_is_and_one_that_fails_says_why(
    page: Chromium, server: Server
) -> None:
    visit(page, f"{server.address}/")
    page.until(COLUMNS)
    choose(page, 0, "slow")
    choose(page, 1, "broken")
    page.until("document.querySelector('.second .stop')")
    assert "model.safetensors is cut off" in texts(page, ".second .stop")[0]
    ask(page, "are you there?")
    page.until(
        "document.querySelector('.first progress') && document.querySelector('.first progress').value > 0", 10
    )
    assert "Loading: model-00001-of-00002.safetensors" in texts(page, ".first .loading")[0]
    answered(page)
    assert texts(page, ".first .answer") == ["there at last"]
    page.until("document.querySelector('.first .loading').textContent == ''")
    page.until("document.querySelectorAll('.second .stop').length == 1")  # told once: by the refused request
    assert "model.safetensors is cut off" in texts(page, ".second .stop")[0]


def test_one_model_is_one_column(page: Chromium, runs: Path) -> None:
    contract = Contract.load(runs / "first")
    with Server(stand_in(runs, contract, [Spoken("only", lambda _: "ಕನ್ನಡ 👩‍⚕️ text")])) as alone:
        visit(page, f"{alone.address}/")
        ask(page, "ಕನ್ನಡದಲ್ಲಿ?")
        answered(page)
        assert page.value(COLUMNS) == 1 and texts(page, ".answer") == ["ಕನ್ನಡ 👩‍⚕️ text"]
        assert page.value("document.querySelector('#fields').hidden") is True
    page.value("document.querySelector('#go').click()")
    page.until("document.querySelector('.column .stop')")
    assert "the server does not answer" in texts(page, ".column .stop")[0]


def whole(contract: Contract, request: LiveRequest) -> str:
    """All of a prompt; `decode` would end at its first turn's end."""
    return "".join(contract.decode([token]) for token in request.prompt if token not in contract.stop_ids)


# ---- hostile texts


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


# ---- runs


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


def contract_of(runs: Path) -> Contract:
    """Any contract: this server is asked for no answer."""
    return Contract.make(write_byte_tokenizer(runs.parent / "bytes"), template="llama3")


def test_there_is_no_run_yet(page: Chromium, folder: Path) -> None:
    with Server(stand_in(folder / "none", contract_of(folder / "none"), [Spoken("any")])) as server:
        visit(page, f"{server.address}/runs")
        page.until("document.querySelector('.calm')")
        assert "tunesmith run" in texts(page, ".next code")[0]


# ---- how they look and how they are reached


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
    for state in states(page, server):
        for width in (360, 1280):
            page.size(width)
            for scheme in ("light", "dark"):
                page.scheme(scheme)
                page.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 60)))")
                assert page.value(CONTRAST) == [], (state, width, scheme)
                assert page.value("document.documentElement.scrollWidth") <= width, (state, width)
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
