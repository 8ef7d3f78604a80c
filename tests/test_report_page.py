"""report.html in a browser: it draws something, complains of nothing, and asks the network for nothing."""

from __future__ import annotations

import os
import re
import shutil
import socketserver
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from test_report import TEST, TRAIN, fill
from tiny_run import recipe, write_curves, write_run

from tunesmith.evaluate.report import write_report

# what Chromium asks its own maker whatever page it shows; fonts and scripts from there are no part of it
OWN = re.compile(
    r"\b(clients\d*|accounts|update|www|safebrowsing|optimizationguide-pa|content-autofill)\.google(apis)?\.com\b"
)
pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("TUNESMITH_REQUIRE_BROWSER"):
        pytest.fail("no chromium on the PATH")
    pytest.skip("no chromium on the PATH; make test-system brings one")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("run") / "tiny", TRAIN, test=TEST)
    fill(run, TEST)
    write_curves(run)
    write_report(recipe(), run)
    return run.report / "report.html"


class Proxy(socketserver.ThreadingTCPServer):
    """Keeps the first line of every request and answers none."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Listener)
        self.asked: list[str] = []


class _Listener(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        line = self.rfile.readline().decode("latin-1").strip()
        assert isinstance(self.server, Proxy)
        if line:
            self.server.asked.append(line)


class Seen(NamedTuple):
    console: list[str]
    requests: list[str]
    colours: int


def look(browser: str, page: Path, folder: Path) -> Seen:
    """What the page says on the console, what it asks the network for, and how many colours it shows."""
    shot = folder / "shot.png"
    with Proxy() as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
            "--disable-domain-reliability", "--metrics-recording-only", "--hide-scrollbars",
            f"--proxy-server=http://127.0.0.1:{proxy.server_address[1]}", f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr", "--window-size=1100,1600", "--virtual-time-budget=3000",
            f"--screenshot={shot}", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(
            [browser, *flags],
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
            env=os.environ | {"HOME": str(folder)},
        )
        proxy.shutdown()
    with Image.open(shot) as picture:
        colours = len(picture.convert("RGB").getcolors(1 << 24) or [])
    requests = [line for line in proxy.asked if not OWN.search(line)]
    return Seen([line for line in done.stderr.splitlines() if ":CONSOLE" in line], requests, colours)


def test_the_report_draws_without_a_network(browser: str, report: Path, tmp_path: Path) -> None:
    seen = look(browser, report, tmp_path)
    assert seen.console == []
    assert seen.requests == []
    assert seen.colours > 50


@pytest.mark.parametrize(
    "spoiled",
    [
        '<img src="https://example.invalid/logo.png">',
        '<link rel="stylesheet" href="https://example.invalid/style.css">',
        '<script src="https://example.invalid/plot.js"></script>',
        "<style>@font-face{font-family:x;src:url(https://example.invalid/x.woff2)}h1{font-family:x}</style>",
        "<script>draw()</script>",
    ],
    ids=["image", "style", "script", "font", "error"],
)
def test_what_must_not_be_there_is_seen(browser: str, report: Path, tmp_path: Path, spoiled: str) -> None:
    page = tmp_path / "report.html"
    page.write_text(report.read_text("utf-8").replace("<main>", f"<main>{spoiled}", 1), "utf-8")
    seen = look(browser, page, tmp_path)
    assert seen.requests or seen.console


def test_an_empty_page_is_seen(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<!doctype html><title>x</title>")
    assert look(browser, page, tmp_path).colours < 5
