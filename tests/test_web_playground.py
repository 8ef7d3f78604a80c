"""The playground in Chromium: answers stream, are compared, judged, stopped and followed up."""

# ruff: noqa: F811  (fixtures are arguments of the same name)
from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from chromium_pipe import Chromium
from starlette.types import Receive, Scope, Send
from test_web_routes import finished_run
from web_pages import (  # noqa: F401  (fixtures)
    ASKED,
    COLUMNS,
    answered,
    ask,
    browser,
    choose,
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
from web_stand_in import Server, Spoken, StandIn, stand_in

from tunesmith.contract import Contract
from tunesmith.generate.protocol import LiveRequest
from tunesmith.run import Run
from tunesmith.serve.state import ServeState

pytestmark = pytest.mark.system


def test_two_models_stream_and_their_fields_stand_side_by_side(
    page: Chromium, server: Server, state: ServeState
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
    models = state.models
    assert isinstance(models, StandIn)
    for name in ("first", "base"):
        models.spoken[name].go.clear()
    page.value("document.querySelector('#go').click()")
    page.until("document.querySelectorAll('.answer[aria-busy]').length == 2")
    page.until("document.querySelector('.answer').textContent.length > 3")
    assert page.value(f"{ASKED}") is False and len(texts(page, ".answer")[0]) < 55  # a part of it: it streams
    for name in ("first", "base"):
        models.spoken[name].go.set()
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
    until = time.monotonic() + 60
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


def between(server: Server, answer: Callable[[Scope, Send], Awaitable[bool]]) -> Server:
    """The server behind something that may answer in its place, or hold a request up: true where it did answer."""
    app = server.app

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not await answer(scope, send):
            await app(scope, receive, send)

    server.server.config.app = asked
    return server


EVENT = 'data: {"choices": [{"delta": {"content": "abc"}}]}\n\n'
BUSY = '{"error": {"message": "the server is busy: try again in 7 s", "code": "server_busy"}}'
SAID = {  # status, Retry-After, body, whether it comes to its end: what the page says
    (200, "", EVENT, False): "the connection ended before the answer didfix: ask again",
    (200, "", EVENT, True): "the connection ended before the answer didfix: ask again",
    (200, "", EVENT + 'data: {"cho\n\n', True): "what came can't be read",
    (200, "", EVENT + "data: null\n\n", True): "what came can't be read",
    (200, "", EVENT + 'data: {"error": {"message": "out of memory"}}\n\n', True): "out of memory",
    (429, "7", BUSY, True): "the server is busy: try again in 7 s",
    (
        503,
        "5",
        '{"error": {"message": "the server is closing"}}',
        True,
    ): "the server is closingfix: try again in 5 s",
    (503, "Wed, 21 Oct 2026 07:28:00 GMT", "<html>a proxy</html>", True): "the server answered 503",
}


def test_a_broken_stream_and_a_refusal_are_told_in_words(page: Chromium, runs: Path) -> None:
    now: list[tuple[int, str, str, bool]] = []

    async def instead(scope: Scope, send: Send) -> bool:
        if not now or scope["path"] != "/v1/chat/completions":
            return False
        status, after, body, whole = now[0]
        headers = [(b"content-type", b"text/event-stream"), (b"retry-after", after.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode(), "more_body": not whole})
        await asyncio.sleep(0.2)
        return True

    spoken = [Spoken("first", lambda _: "well again", run=Run(runs / "first"))]
    with between(Server(stand_in(runs, Contract.load(runs / "first"), spoken)), instead) as server:
        visit(page, f"{server.address}/")
        for given, said in SAID.items():
            now[:] = [given]
            ask(page, "anything")
            page.until(f"{ASKED} && document.querySelector('.column .stop')")
            told = texts(page, ".column .stop")[0]
            assert told.startswith(said) and told.count("try again") <= 1 and "GMT" not in told, (given, told)
            assert texts(page, ".answer") == ["abc" if given[0] == 200 else ""]  # what came stays
            assert page.value("document.querySelector('#follow').disabled")
        now.clear()
        ask(page, "anything")
        answered(page)
        assert texts(page, ".answer") == ["well again"] and not texts(page, ".column .stop")


def test_a_judgement_stays_with_its_answer_and_the_last_one_counts(page: Chromium, folder: Path) -> None:
    runs, seconds, count = folder / "judged", [0.0], iter(range(9))
    run = finished_run(runs / "first")

    async def held_up(scope: Scope, send: Send) -> bool:
        if scope["path"] == "/ui/feedback" and scope["method"] == "POST":
            await asyncio.sleep(seconds.pop() if seconds else 0)
        return False

    state = stand_in(
        runs, Contract.load(run.path), [Spoken("first", lambda _: f"answer {next(count)}", run=run)]
    )
    pressed = "document.querySelector('.{}').getAttribute('aria-pressed') == 'true'"
    with between(Server(state), held_up) as server:
        visit(page, f"{server.address}/")
        ask(page, "one")
        answered(page)
        seconds[:] = [1.0]
        page.value("document.querySelector('.good').click()")
        ask(page, "two")
        answered(page)
        page.until("document.querySelector('#feedback').textContent.includes('1 row')")
        assert texts(page, ".answer") == ["answer 1"] and texts(page, ".told") == [
            ""
        ]  # nobody has judged this one
        assert not page.value(pressed.format("good"))
        seconds[:] = [1.0]  # the first is slower than the second
        page.value("document.querySelector('.good').click(); document.querySelector('.bad').click()")
        page.until(pressed.format("bad"))
        assert not page.value(pressed.format("good"))
        kept = {name: run.path / name for name in ("feedback.jsonl", "feedback-bad.jsonl")}
        assert [len(path.read_text().splitlines()) for path in kept.values()] == [1, 1]
        page.value("document.querySelector('.judge button:nth-of-type(3)').click()")
        page.write(".correct textarea", "typed with care")
        page.value("document.querySelector('.correct .primary').click()")
        page.until("document.querySelector('.told').textContent.startsWith('Kept as a row')")
        page.value("document.querySelector('.good').click()")
        page.until(pressed.format("good"))
        page.value("document.querySelector('.judge button:nth-of-type(3)').click()")
        assert page.value("document.querySelector('.correct textarea').value") == "typed with care"
        assert complaints(page) == []


def test_who_has_not_answered_is_asked_no_follow_up(page: Chromium, runs: Path) -> None:
    run = Run(runs / "first")
    late = Spoken("late", lambda _: "knows nothing of it", run=run, state="failed", detail="no room")
    state = stand_in(runs, Contract.load(run.path), [Spoken("first", lambda _: "yes", run=run), late])
    with Server(state) as server:
        visit(page, f"{server.address}/")
        ask(page, "one")
        answered(page)
        late.state = "ready"
        page.write("#prompt", "and then?")
        page.value("document.querySelector('#follow').click()")
        page.until("document.querySelector('.first .turn')")
        answered(page)
        assert texts(page, ".answer") == ["yes", ""]
        models = state.models
        assert isinstance(models, StandIn) and not models.live["late"].asked


def whole(contract: Contract, request: LiveRequest) -> str:
    """All of a prompt; `decode` would end at its first turn's end."""
    return "".join(contract.decode([token]) for token in request.prompt if token not in contract.stop_ids)
