"""Pictures of the pages of a running server: desktop and phone, light and dark. Needs Chromium on the PATH.

python scripts/page_pictures.py ADDRESS OUT_FOLDER      e.g. http://127.0.0.1:8080 shots/
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, os.fspath(Path(__file__).parent))
from chromium_pipe import Chromium
from report_pictures import browser

LOOKS = {
    "light": (1280, "light"),
    "dark": (1280, "dark"),
    "phone": (390, "light"),
    "phone-dark": (390, "dark"),
}
ANSWERED = "document.querySelector('#go') && !document.querySelector('#go').disabled"


def looks(page: Chromium, folder: Path, name: str) -> Iterator[Path]:
    """The open page in all four looks."""
    for look, (width, scheme) in LOOKS.items():
        page.size(width)
        page.scheme(scheme)
        page.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 150)))")
        path = folder / f"{name}-{look}.png"
        path.write_bytes(page.shot())
        yield path


def ask_a_row(page: Chromium, number: int = 1, seconds: float = 120) -> None:
    """The playground's first validation row, answered by all columns."""
    page.until("document.querySelectorAll('.column').length")
    if page.value("!document.querySelector('#row').hidden"):
        page.value("document.querySelector('#row').open = true")
        page.value(
            f"(one => {{ one.value = {number}; one.dispatchEvent(new Event('change')); }})"
            "(document.querySelector('#number'))"
        )
        page.until("document.querySelector('#prompt').value")
    page.value("document.querySelector('#go').click()")
    page.until(f"{ANSWERED} && document.querySelectorAll('.pace span').length", seconds)
    page.value("new Promise(done => setTimeout(done, 600))")


def pictures(address: str, folder: Path) -> Iterator[Path]:
    """Playground with an answered row, the list of runs, one run, two runs compared where there are two."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
        Chromium(browser() or "chromium", Path(home)) as page,
    ):
        page.size(1280)
        page.visit(f"{address}/")
        yield from looks(page, folder, "playground")
        ask_a_row(page)
        yield from looks(page, folder, "answered")
        page.visit(f"{address}/runs")
        page.until("document.querySelectorAll('.list tbody tr').length || document.querySelector('.calm')")
        yield from looks(page, folder, "runs")
        names = "[...document.querySelectorAll('.list tbody tr')]"
        runs = page.value(f"{names}.filter(one => one.querySelector('a')).map(one => one.dataset.name)")
        if runs:
            page.value(f"location.hash = '#' + new URLSearchParams({{run: {runs[0]!r}}})")
            page.until("document.querySelector('.cards')")
            yield from looks(page, folder, "run")
            page.value("location.hash = ''")
            page.until("document.querySelectorAll('.list tbody tr').length")
        scored = page.value(
            f"{names}.filter(one => !one.querySelector('input').disabled).map(one => one.dataset.name)"
        )
        if len(scored) > 1:
            asked = "&".join(f"compare={name}" for name in scored[:2])
            page.value(f"location.hash = {asked!r}")
            page.until("document.querySelector('.found, .stop')", 120)
            yield from looks(page, folder, "compared")


if __name__ == "__main__":
    if len(sys.argv) != 3 or browser() is None:
        sys.exit(
            __doc__ if len(sys.argv) != 3 else "no chromium on the PATH: scripts/install_programs brings one"
        )
    for one in pictures(sys.argv[1].rstrip("/"), Path(sys.argv[2])):
        print(one)
