"""data/report.html: it says what the report says, quotes rows as text alone, and is the same file every time."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser

import inspection_report as made
import pytest

from tunesmith.data.shown.page import render

SHAPES = ["cancer", "questions", "clean", "hostile", "one_row"]
ALONE = {"meta", "br", "link", "path", "use", "rect"}
KNOWN = {
    "html", "head", "meta", "title", "style", "body", "main", "section", "nav", "a", "div", "h1", "h2", "h3", "p",
    "ul", "li", "b", "i", "small", "span", "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "dl",
    "dt", "dd", "figure", "figcaption", "svg", "g", "defs", "path", "text", "use", "clippath", "rect",
}  # fmt: skip


def page(shape: str, **more: object) -> str:
    facts = [("recipe sha256", "ab" * 32)]
    return render(made.whole(getattr(made, shape)()), name=shape, max_length=2048, facts=facts, **more)


class Tags(HTMLParser):
    """Every tag and attribute; fails where one is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.attributes += attrs
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in ALONE:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_well_formed_and_asks_for_nothing(shape):
    text = page(shape)
    tags = Tags(text)
    assert set(tags.seen) <= KNOWN
    for name, value in tags.attributes:
        assert not name.startswith("on"), name
        if name in ("href", "xlink:href", "src"):
            assert value is not None and value.startswith("#"), value
    assert not re.search(r"url\((?!#)|@import", text)
    assert (
        "default-src 'none'" in text and "prefers-color-scheme: dark" in text and "width=device-width" in text
    )
    links = {value for name, value in tags.attributes if name == "href"}
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "an id stands twice"
    assert {f"#{one}" for one in ids} >= links
    text.encode()


def test_rows_that_look_like_html_change_nothing_but_text():
    hostile, tame = made.hostile(), made.hostile()
    plain = {text: f"plain {i} {'x' * len(text)}" for i, text in enumerate(made.HOSTILE)}
    tame = _replaced(tame, plain)
    first, second = (Tags(render(made.whole(one), name="x")) for one in (hostile, tame))
    assert first.seen == second.seen
    assert "<script>alert(1)</script>" in first.text and "right to left" in first.text
    assert not any(character in first.text for character in "\x00\x07\x1b\u2028\u202e\x85")


def _replaced(value, names):
    """`value` with every hostile text exchanged for a tame one of the same length."""
    if isinstance(value, str):
        for bad, good in names.items():
            value = value.replace(bad, good[: max(len(bad), 8)])
        return value
    if isinstance(value, list):
        return [_replaced(one, names) for one in value]
    if isinstance(value, dict):
        return {_replaced(key, names): _replaced(one, names) for key, one in value.items()}
    return value


def test_a_page_without_escaping_would_be_seen(monkeypatch):
    """The mutant: sections that write text as it is."""
    from tunesmith.data import shown

    for module in (shown.page, shown.page_texts):
        with monkeypatch.context() as patch:
            patch.setattr(module, "escape", str)
            with pytest.raises(AssertionError):
                assert set(Tags(page("hostile")).seen) <= KNOWN


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_report_gives_the_same_bytes_in_any_process(shape):
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); import test_data_page as t; "
        f"print(hashlib.sha256(t.page({shape!r}).encode()).hexdigest())"
    )
    import hashlib
    from pathlib import Path

    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        env={"PYTHONHASHSEED": "7", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == hashlib.sha256(page(shape).encode()).hexdigest()


def test_it_says_what_the_report_says():
    text = unescape(re.sub(r"<[^>]+>", " ", page("cancer", recipe="r.yaml")))
    text = re.sub(r"\s+", " ", text)
    for said in (
        "3 checks stop the run: exact_leak, empty_answer, schema. 4 checks warn.",
        "tunesmith check r.yaml --reject-to rejected.jsonl",
        "train 4,500, validation 500", "tokens; the limit is 2,048",
        "exact_leak error 12 of 500 rows, 2.4 %", "validation_a.jsonl:3 validation the prompt of train.jsonl:93",
        "and 7 more rows; data/findings.jsonl names every one",
        "validation in train 12 · 2.4 % 11 · 2.2 % 0",
        "they fit the schema 98.6 % 4,932 of 5,000", "stage 2.1 % 70 63.0 % 53.0 % 37.0 % 68",
        "4,990 of 5,000 prompts (99.8 %) end with the cue:", "rows that are almost copies 31",
        "recipe sha256 " + "ab" * 32, "cache key 5f1c0d3a9be04f7c",
        "4,500 rows of 4,500 documents, 810,000 tokens, 39.4 % of them learned",
        "Also 12 zero-width characters, 3 lost characters (U+FFFD).",
    ):  # fmt: skip
        assert said in text, said
    assert "Boilerplate" not in text and "Preference pairs" not in text


def test_sections_without_rows_are_left_out():
    text = page("one_row")
    assert "0 findings in 1 row" in text
    for gone in ("Leaks and repeats</h2><p>", "<h2>Fields", "<h2>Answers", "Boilerplate"):
        assert gone not in text


def test_numbers_of_persons_are_counted_and_never_quoted():
    report = made.questions()
    for check in report["checks"]:
        if check["name"] == "phi":
            check["examples"] = [made.place(5, "phone: 020 7946 0958, mail x@example.org")]
    text = render(made.whole(report), name="x")
    assert "7946" not in text and "example.org" not in text and "phone, mail" in text
    assert "Counts only" in text


def test_leaked_rows_are_not_counted_twice():
    report = (
        made.questions()
    )  # 17 near leaks in each of three pairs: 17 validation rows and 17 test rows at least
    text = re.sub(r"<[^>]+>", "|", render(made.whole(report), name="x"))
    assert re.search(r"leaked rows, at least\|+34\|+exact 0, near 34, group 0", text)


def test_rows_that_cannot_be_used_are_named():
    report = made.whole(made.clean(), refused=3)
    report["overlong"] = {
        "rows": 2,
        "of": 5000,
        "longest": 9000,
        "first": [["train.jsonl:7", 9000], [made.HOSTILE[1], 4000]],
    }
    tags = Tags(render(report, name="x", max_length=2048))
    assert set(tags.seen) <= KNOWN | {"pre"}
    text = re.sub(r"\s+", " ", tags.text)
    assert "6 rows can't be used." in text and "3 of 9 rows can't be used:train.jsonl:3: </main>" in text
    assert "2 of 5,000 rows are over data.max_length (2,048 tokens)" in text and "train.jsonl:79,000" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("shape", SHAPES)
def test_each_column_has_its_header(shape):
    tables = re.findall(r"<table.*?</table>", page(shape), re.DOTALL)
    assert tables
    for one in tables:
        widths = {len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr.*?</tr>", one, re.DOTALL)}
        assert len(widths) == 1, one[:300]
