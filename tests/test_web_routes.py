"""Routes of the pages: names are no paths, reports are shut in, curves grow, answers are checked field by field."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_run import guess, recipe, reports, write_curves, write_predictions, write_run
from web_stand_in import Server, Spoken, stand_in

from tunesmith.contract import Contract
from tunesmith.run import Run
from tunesmith.serve.web.fields import field_table, read
from tunesmith.serve.web.grown_lines import grown
from tunesmith.serve.web.pages import page_files
from tunesmith.store.fetched import cache_home
from tunesmith.tasks.extraction import ExtractionTask

SCHEMA = {
    "type": "object",
    "properties": {
        "stage": {"enum": ["I", "II", None]},
        "site": {"type": ["string", "null"]},
        "drugs": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        "inner": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
    "required": ["stage", "site"],
    "additionalProperties": False,
}


def finished_run(folder: Path, skill: float = 0.9, name: str = "") -> Run:
    """A run with a recipe, rows, curves, proofs, answers and a state."""
    import random

    test = reports(40, seed=2, name="test")
    run = write_run(folder, reports(60), validation=reports(20, seed=1, name="validation"), test=test)
    run.recipe_file.write_text(json.dumps(recipe(name=name or folder.name).to_json()))
    write_curves(run)
    rng = random.Random(4)
    for system, good in (("base", 0.2), ("tuned", skill)):
        write_predictions(run.predictions / f"{system}.jsonl", test, [guess(row, rng, good) for row in test])
    proofs = [
        {
            "name": "adapter_reloads",
            "passed": True,
            "figure": 0,
            "limit": 0,
            "detail": "largest difference of a logit",
        },
        {
            "name": "merged_close",
            "passed": False,
            "figure": 0.5,
            "limit": 0.1,
            "detail": "merged and live adapter",
        },
    ]
    run.write_json(run.proofs_file, {"proofs": proofs})
    run.write_state(phase="evaluate done", step=120, steps=120)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    finished_run(folder / "first")
    finished_run(folder / "second", skill=0.4)
    (folder / "outside.html").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def client(runs: Path) -> Iterator[httpx.Client]:
    run = Run(runs / "first")
    spoken = [
        Spoken("first", run=run, facts={"run": "first"}),
        Spoken("base", run=run, schema=SCHEMA, facts={"run": "first"}),
        Spoken("later", state="waiting", facts={}),
    ]
    state = stand_in(runs, Contract.load(run.contract_folder), spoken)
    with Server(state) as server, httpx.Client(base_url=server.address, timeout=120) as made:
        yield made


def test_every_file_of_the_pages_comes_with_its_kind_and_nothing_else_does(client: httpx.Client) -> None:
    assert {
        "playground.html",
        "runs.html",
        "pages.css",
        "playground.js",
        "runs.js",
        "mark.svg",
    } <= page_files().keys()
    for name, (content, kind, tag) in page_files().items():
        got = client.get(f"/web/{name}")
        assert (got.content, got.headers["content-type"]) == (content, kind)
        assert client.get(f"/web/{name}", headers={"If-None-Match": tag}).status_code == 304
        assert "unsafe-inline" not in got.headers["content-security-policy"]
    for name in (
        "..%2fpages.py",
        "%2e%2e/pages.py",
        "pages.py",
        "../../../pyproject.toml",
        "",
        "static",
        "a%00b",
    ):
        assert client.get(f"/web/{name}").status_code == 404, name


def test_pages_name_no_other_host_and_hold_no_inline_code() -> None:
    import re

    for name, (content, _, _) in page_files().items():
        text = content.decode()
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), name
        if name.endswith(".html"):
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", text), name
        if name.endswith(".js"):
            unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
            assert not re.search(unsafe, text), name
            assert len(text.splitlines()) <= 400


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "",
        "/etc",
        "first/../first",
        "../first",
        "..%2f..",
        "first/",
        "first\\..",
        "nosuch",
        "a\0b",
        "x" * 300,
    ],
)
def test_a_run_is_named_by_the_list_alone(client: httpx.Client, name: str) -> None:
    for path in ("/ui/run", "/ui/curve", "/ui/log", "/ui/report"):
        got = client.get(path, params={"name": name})
        assert got.status_code in (404, 422), (path, got.text)
    assert client.get("/ui/compare", params={"run": ["first", name]}).status_code in (404, 422)


def test_a_report_is_nobodys_page(client: httpx.Client, runs: Path) -> None:
    report = runs / "first" / "report" / "report.html"
    assert client.get("/ui/report", params={"name": "first"}).status_code == 404
    report.parent.mkdir(exist_ok=True)
    report.write_text("<script>fetch('/ui/runs')</script>")
    got = client.get("/ui/report", params={"name": "first"})
    policy = got.headers["content-security-policy"]
    assert got.status_code == 200 and policy.startswith("sandbox ") and "allow-same-origin" not in policy
    assert "connect-src 'none'" in policy and "default-src 'none'" in policy
    report.unlink()
    report.symlink_to(runs / "outside.html")
    got = client.get("/ui/report", params={"name": "first"})
    assert got.status_code == 400 and "secret" not in got.text
    shutil.rmtree(report.parent)


def test_the_list_and_a_run_say_what_the_files_say(client: httpx.Client) -> None:
    listed = client.get("/ui/runs").json()
    assert {one["name"] for one in listed["runs"]} == {"first", "second"}
    assert all(one["comparable"] and one["state"] == "done" for one in listed["runs"])
    told = client.get("/ui/run", params={"name": "first"}).json()
    assert [one["passed"] for one in told["proofs"]] == [True, False]
    assert told["next"].startswith("tunesmith ") and told["summary"]["step"] == 120 and told["gaps"]


def test_damaged_files_are_told(client: httpx.Client, runs: Path) -> None:
    broken = Run(runs / "broken")
    broken.path.mkdir()
    broken.recipe_file.write_text("name: broken\n")
    broken.state_file.write_text("[1, 2")
    try:
        line = next(one for one in client.get("/ui/runs").json()["runs"] if one["name"] == "broken")
        assert line["state"] == "unreadable"
        got = client.get("/ui/run", params={"name": "broken"})
        assert got.status_code == 400 and got.json()["error"]["fix"]
    finally:
        shutil.rmtree(broken.path)


def test_one_odd_run_hides_no_other(client: httpx.Client, runs: Path) -> None:
    odd = [Run(runs / os.fsdecode(b"caf\xe9")), Run(runs / "a#b&c=d %41\n\u202e"), Run(runs / "listed")]
    for run in odd:
        shutil.copytree(runs / "first", run.path)
    odd[2].write_json(odd[2].data / "report.json", {"splits": []})
    try:
        states = {one["name"]: one for one in client.get("/ui/runs").json()["runs"]}
        assert states["caf\ufffd"]["state"] == "unreadable" and "UTF-8" in states["caf\ufffd"]["error"]
        assert not states["caf\ufffd"]["comparable"] and states["first"]["state"] == "done"
        assert client.get("/ui/run", params={"name": odd[1].name}).json()["summary"]["name"] == odd[1].name
        got = client.get("/ui/run", params={"name": "listed"})
        assert got.status_code == 400 and "report.json is damaged" in got.json()["error"]["message"]
    finally:
        for run in odd:
            shutil.rmtree(run.path)


# ---- new lines only


def test_only_new_whole_lines_come(tmp_path: Path) -> None:
    path, other = tmp_path / "metrics.jsonl", tmp_path / "timing.jsonl"
    first = grown((path, other), "")
    assert first.files == [[], []] and first.reset
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    told = grown((path, other), first.after)
    assert told.files == [[{"step": 1}], []] and told.reset
    with path.open("a") as file:
        file.write('ss": 3}\n')
    other.write_text('{"step": 2}\n')
    told = grown((path, other), told.after)
    assert told.reset  # the other file is new: all is told
    assert told.files == [[{"step": 1}, {"step": 2, "loss": 3}], [{"step": 2}]]
    with path.open("a") as file:
        file.write('{"step": 3}\nnot json\n[1]\n{"step": 4}\n')
    told = grown((path, other), told.after)
    assert not told.reset and told.files == [[{"step": 3}, {"step": 4}], []]
    again = grown((path, other), told.after)
    assert not again.reset and again.files == [[], []] and again.after == told.after


def test_a_resumed_run_is_told_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    told = grown((path,), "")
    cut = tmp_path / "new"
    cut.write_text('{"step": 1}\n')
    cut.replace(path)
    told = grown((path,), told.after)
    assert told.reset and told.files == [[{"step": 1}]]


@pytest.mark.parametrize("after", ["x", "1:2", "1:2,3:4,5:6", "1:-5,2:3", ":", ",", "9" * 30 + ":1,1:1"])
def test_a_mark_that_is_none_of_ours_begins_anew(client: httpx.Client, after: str) -> None:
    told = client.get("/ui/curve", params={"name": "first", "after": after})
    assert told.status_code == 200 and told.json()["reset"] and len(told.json()["metrics"]) == 24


# ---- answers, field by field


def problems(answer: Any, schema: dict[str, Any] | None = SCHEMA) -> dict[str, str | None]:
    table = field_table([read(answer if isinstance(answer, str) else json.dumps(answer), schema)], schema)
    return {line["field"]: line["cells"][0] and line["cells"][0]["problem"] for line in table}


def test_each_kind_of_problem_is_told_at_its_field() -> None:
    good = {"stage": "I", "site": None, "drugs": [{"name": "x"}], "inner": {"a": 1}}
    assert problems(good) == {"stage": None, "site": None, "drugs": None, "inner.a": None}
    found = problems({"stage": "IV", "site": 5, "mood": "x", "inner": {"b": 1}, "drugs": [{"name": 3}]})
    assert found["stage"] == "enum" and found["site"] == "type" and found["mood"] == "extra"
    assert found["inner.a"] == "missing" and found["drugs.name"] == "type"
    assert problems({"stage": "I"})["site"] == "missing"
    assert set(problems("no object at all").values()) == {None}
    assert problems({"a": {"b": 1}, "c": []}, None) == {"a.b": None, "c": None}


def test_a_reference_to_the_web_is_no_download() -> None:
    one = read("{}", {"$ref": "https://example.com/schema.json"})
    assert one.value == {} and "refers to" in one.problems[0]


def test_answers_stand_beside_each_other_and_beside_the_gold() -> None:
    task = ExtractionTask(SCHEMA)
    gold = task.parse('{"stage": "I", "site": null}')
    answers = ['{"stage": "I", "site": null}', '{"stage": "II", "site": "bone"}', "nothing"]
    details = [task.details(gold, task.parse(answer)) for answer in answers]
    table = {line["field"]: line for line in field_table([read(a, SCHEMA) for a in answers], SCHEMA, details)}
    assert [cell["verdict"] for cell in table["stage"]["cells"]] == ["match", "wrong", "missed"]
    assert [cell["verdict"] for cell in table["site"]["cells"]] == ["null", "hallucinated", "unparsed"]
    assert table["stage"]["differ"] and table["stage"]["gold"] == "I"


def test_check_uses_the_models_schema_and_the_runs_task(client: httpx.Client, runs: Path) -> None:
    row = client.get("/ui/rows", params={"model": "first", "split": "validation", "number": 3}).json()
    assert row["count"] == 20 and json.loads(row["gold"])
    body = {
        "answers": [{"model": "first", "answer": row["gold"]}, {"model": "base", "answer": "{}"}],
        "row": {"model": "first", "split": "validation", "number": 3},
    }
    told = client.post("/ui/check", json=body).json()
    assert told["task"] == "extraction" and [one["right"] for one in told["answers"]] == [True, False]
    assert {"site", "treatment", "stage"} <= {line["field"] for line in told["fields"]}
    assert (
        client.get("/ui/rows", params={"model": "first", "split": "test", "number": 999}).status_code == 400
    )
    assert client.get("/ui/rows", params={"model": "later", "split": "test"}).status_code == 404
    assert client.get("/ui/rows", params={"model": "nobody", "split": "test"}).status_code == 404


def test_judgements_over_http(client: httpx.Client, runs: Path) -> None:
    turns = [{"role": "user", "content": "a prompt of nobody"}]
    body = {"id": "answer-12345678", "model": "base", "prompt": turns, "answer": "poor", "verdict": "bad"}
    assert client.post("/ui/feedback", json=body).json()["counts"]["bad"] == 1
    told = client.post("/ui/feedback", json=body | {"corrected": "rich"}).json()
    assert told["kept"] == "train" and told["counts"] == {"train": 1, "bad": 0, "held_out": 0}
    assert "--set data.train=" in told["next"]["command"]
    got = client.get("/ui/feedback/download", params={"model": "first"})
    assert json.loads(got.text)["completion"] == "rich" and "attachment" in got.headers["content-disposition"]
    assert (runs / "first" / "feedback.jsonl").read_bytes() == got.content
    for wrong in (
        {"corrected": "  "},
        {"prompt": []},
        {"id": "../../x"},
        {"model": "nobody"},
        {"verdict": "good?"},
    ):
        assert client.post("/ui/feedback", json=body | wrong).status_code in (400, 404, 422), wrong
    assert client.post("/ui/feedback", json=body | {"verdict": "none"}).json()["counts"]["train"] == 0


def test_the_models_and_what_is_known_of_them(client: httpx.Client) -> None:
    first, _, later = client.get("/ui/models").json()["models"]
    assert first["run"] == "first" and first["rows"] == {"validation": 20, "test": 40}
    assert first["defaults"] == {"max_tokens": 700, "temperature": 0.0, "top_p": 1.0}
    assert later["state"] == "waiting" and later["defaults"] is None and later["rows"] == {}


def test_a_run_that_was_fetched_keeps_no_judgement_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is named by its content: after the next export nobody would look there any more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = finished_run(cache_home() / "s3" / "0123abcd" / "far")
    for name in ("train", "validation", "test"):
        for path in run.data.glob(f"{name}.*"):
            path.unlink()  # rows are not fetched
    state = stand_in(
        tmp_path / "runs", Contract.load(run.path), [Spoken("far", facts={"run": str(run.path)}, run=run)]
    )
    turns = [{"role": "user", "content": "x"}]
    body = {"id": "answer-12345678", "model": "far", "prompt": turns, "answer": "y", "verdict": "good"}
    with Server(state) as server, httpx.Client(base_url=server.address, timeout=60) as client:
        told = client.post("/ui/feedback", json=body).json()
        assert told["file"] == str(tmp_path / "runs" / "feedback.jsonl") and Path(told["file"]).is_file()
        assert "cache" not in json.dumps(told["next"]) and not list(run.path.glob("feedback*"))
        checked = client.post("/ui/check", json={"answers": [{"model": "far", "answer": '{"a": 1}'}]})
        assert checked.status_code == 200 and checked.json()["schema"] is False  # nobody knows its task here


# ---- several runs


def test_compare_says_what_the_verb_says(client: httpx.Client, runs: Path) -> None:
    told = client.get("/ui/compare", params={"run": ["second", "first"]}).json()
    assert [one["run"] for one in told["runs"]] == ["second", "first"]
    assert (
        told["comparisons"][0]["difference"]["value"] > 0
        and "first is better than second" in told["findings"][0]
    )
    lonely = client.get("/ui/compare", params={"run": ["first", "first"]})
    assert lonely.status_code == 400 and "two or more" in lonely.json()["error"]["message"]
