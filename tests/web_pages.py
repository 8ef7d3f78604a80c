"""What the tests of the pages share: a server whose models say what a test tells them, and Chromium looking at it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium_pipe import Chromium
from test_report_page import browser  # noqa: F401  (a fixture)
from test_web_routes import finished_run
from tiny_run import write_byte_tokenizer
from web_stand_in import Server, Spoken, stand_in

from tunesmith.contract import Contract
from tunesmith.run import Run
from tunesmith.serve.state import ServeState

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


def choose(page: Chromium, column: int, model: str) -> None:
    page.value(
        f"(one => {{ one.value = {model!r}; one.dispatchEvent(new Event('change')); }})"
        f"(document.querySelectorAll('.column select')[{column}])"
    )


def contract_of(runs: Path) -> Contract:
    """Any contract: this server is asked for no answer."""
    return Contract.make(write_byte_tokenizer(runs.parent / "bytes"), template="llama3")


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
