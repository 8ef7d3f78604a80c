"""data/report.html in a browser: it draws, complains of nothing, asks for nothing, and fits a phone."""

from __future__ import annotations

from pathlib import Path

import inspection_report as made
import pytest
from test_report_page import browser, look  # noqa: F401  (a fixture)

from tunesmith.data.shown.page import render

pytestmark = pytest.mark.system


@pytest.mark.parametrize("shape", ["cancer", "questions", "clean", "hostile", "one_row"])
def test_the_page_draws_without_a_network(browser: str, tmp_path: Path, shape: str) -> None:  # noqa: F811
    page = tmp_path / "report.html"
    page.write_text(render(made.whole(getattr(made, shape)()), name=shape, max_length=2048), "utf-8")
    seen = look(browser, page, tmp_path)
    assert seen.console == []
    assert seen.requests == []
    assert seen.colours > 50


def test_a_script_of_a_row_would_be_seen(browser: str, tmp_path: Path) -> None:  # noqa: F811
    page = tmp_path / "report.html"
    text = render(made.whole(made.hostile()), name="x", max_length=2048)
    page.write_text(
        text.replace("&lt;script&gt;", "<script>").replace("&lt;/script&gt;", "</script>"), "utf-8"
    )
    seen = look(browser, page, tmp_path)
    assert seen.console
