"""runs and show: what state a run is in, told by its lock and its heartbeat, and 80 columns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_run import write_curves

from tunesmith.cli import main
from tunesmith.run import Run
from tunesmith.view import summary, words
from tunesmith.view.series import load_series
from tunesmith.view.sources import all_runs, is_locked
from tunesmith.view.summary import summarise

HOLD = """
import sys, time
from pathlib import Path
from tunesmith.run import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""
HEADLINE = {
    "metric": "field_f1",
    "base": 0.1234,
    "tuned": 0.8567,
    "difference": {"value": 0.7333, "low": 0.7, "high": 0.76},
    "n": 300,
}


def make_run(runs: Path, name: str, *, age: float = 60, curves: bool = True, **state: Any) -> Run:
    """A run folder with a state whose last sign is `age` seconds old."""
    run = Run(runs / name)
    run.path.mkdir(parents=True)
    run.recipe_file.write_text(f"name: {name}\n")
    if curves:
        write_curves(run)
    run.write_state(**state)
    content = run.read_json(run.state_file)
    run.write_json(run.state_file, content | {"heartbeat": time.time() - age})
    return run


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    """The JSON object and the printed lines of a verb that ends with 0."""
    assert main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    *lines, last = out.splitlines()
    return json.loads(last), "\n".join(lines)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    make_run(folder, "killed", age=7000, phase="train", step=40, steps=120)
    make_run(folder, "paused", age=200, phase="stopped", step=60, steps=120)
    done = make_run(folder, "a-name-that-is-far-too-long-for-a-column-of-a-terminal", age=4 * 86400,
                    phase="export done", step=12000, steps=12000)  # fmt: skip
    done.write_json(done.report / "report.json", {"headline": HEADLINE})
    make_run(folder, "broken", age=500, phase="evaluate",
             ended={"exit": 3, "phase": "evaluate", "error": "proof x failed\n  fix:   look"})  # fmt: skip
    make_run(folder, "fresh", age=1, curves=False, phase="prepare")
    return folder


def test_states_order_and_width(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, runs / "fresh"], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        found, said = listed(capsys, "runs", "--runs-dir", str(runs))
        holder.kill()
    states = [(one["name"][:6], one["state"], one["phase"]) for one in found["runs"]]
    assert states == [
        ("fresh", "running", "prepare"),
        ("paused", "stopped", "train"),
        ("broken", "failed", "evaluate"),
        ("killed", "stale", "train"),
        ("a-name", "done", "export"),
    ]
    assert max(map(len, said.splitlines()[1:])) <= 80  # the first names the folder
    assert "0.12 → 0.86" in said and "headline: field_f1, base → tuned" in said
    assert "12000/12000" in said and "4 d" in said and "a-na" in said and "minal" in said
    # state.json is written every ten seconds, a logged step at once: the curves end at 120
    killed = next(one for one in found["runs"] if one["name"] == "killed")
    assert killed["step"] == 120 and killed["steps"] == 120 and killed["size"] > 1000
    assert killed["best_loss"] == pytest.approx(min(validation_losses(runs / "killed")))


def validation_losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["validation_loss"] for line in lines if line["validation_loss"] is not None]


def test_the_lock_decides_not_the_age(runs: Path) -> None:
    """A mutant that trusts the heartbeat alone calls a killed run running for minutes: the lock knows at once."""
    just_killed = make_run(runs, "just-killed", age=1, phase="train", step=1, steps=2)
    with all_runs(runs) as sources:
        source = next(one for one in sources if one.run.name == "just-killed")
        assert summarise(source, time.time()).state == "stale"
        blind = source._replace(locked=None)  # S3: nobody can be asked
        assert summarise(blind, time.time()).state == "running"
        assert summarise(blind, time.time() + 600).state == "stale"
    with just_killed.lock():
        assert is_locked(just_killed)
    assert not is_locked(just_killed)


def test_curves_are_read_again_only_where_they_have_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred long runs took seconds to read, at every look of a page that looks every few seconds."""
    make_run(tmp_path, "long", phase="train done")
    read = []
    monkeypatch.setattr(summary, "load_series", lambda run: read.append(run) or load_series(run))
    with all_runs(tmp_path) as (source,):
        first = summarise(source, time.time())
        assert summarise(source, time.time()) == first and len(read) == 1
        with source.run.metrics_file.open("a") as file:
            file.write('{"step": 4000, "loss": 0.1, "validation_loss": 0.001}\n')
        grown = summarise(source, time.time())
        assert (grown.step, grown.best_step, grown.best_loss) == (4000, 4000, 0.001) and len(read) == 2
        source.run.metrics_file.unlink()
        assert summarise(source, time.time()).best_loss is None


def test_looking_never_keeps_a_run_from_starting(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    (run.path / ".lock").touch()
    looker = subprocess.Popen(
        [sys.executable, "-c", "import sys\nfrom pathlib import Path\nfrom tunesmith.run import Run\n"
         "from tunesmith.view.sources import is_locked\nprint('on', flush=True)\n"
         "while True: is_locked(Run(Path(sys.argv[1])))", run.path],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert looker.stdout is not None
    looker.stdout.readline()
    try:
        for _ in range(100):
            with run.lock():
                pass
    finally:
        looker.kill()
        looker.wait()
        looker.stdout.close()


def test_several_metrics_are_told_apart(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    other = Run(runs / "paused")
    other.write_json(other.report / "report.json", {"headline": HEADLINE | {"metric": "rouge_l"}})
    _, said = listed(capsys, "runs", "list", "--runs-dir", str(runs))
    assert "headline: a rouge_l, base → tuned" in said and "b field_f1, base → tuned" in said
    assert "0.12 → 0.86 a" in said and "0.12 → 0.86 b" in said
    assert max(map(len, said.splitlines()[1:])) <= 80  # the first names the folder


def test_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, said = listed(capsys, "runs", "--runs-dir", str(tmp_path / "none"))
    assert found["runs"] == [] and "there is no run under" in said


def test_show_a_run(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "a-name-that-is-far-too-long-for-a-column-of-a-terminal"
    run = Run(runs / name)
    proofs = [
        {"name": f"bos_count_{split}", "passed": True, "figure": 0, "limit": 0, "detail": "d"}
        for split in ("train", "test")
    ]
    proofs.append({"name": "merge_equal", "passed": False, "figure": 0.34567, "limit": 0.1, "detail": "far"})
    run.write_json(run.proofs_file, {"proofs": proofs})
    run.write_json(run.data / "report.json",
                   {"splits": {"train": {"rows": 2000, "tokens": 1000, "learned_tokens": 370},
                               "test": {"rows": 300}}})  # fmt: skip
    lines = [{"step": 5, "seconds": 2.0, "tokens_per_second": 900.0, "memory_gib": 1.5}]
    run.timing_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, said = listed(capsys, "show", name, "--runs-dir", str(runs))
    assert "done: export, step 12000 of 12000, last sign 4 d ago" in said
    assert "rows      train 2,000 (1,000 tokens, 37% learned), test 300" in said
    assert "proofs    2 passed, 1 failed" in said
    assert "ok      bos_count (train, test): 0 (limit 0)" in said
    assert "FAILED  merge_equal: 0.3457 (limit 0.1)" in said and "far" in said
    assert "field_f1: base 0.123, tuned 0.857 (n = 300)" in said
    assert "difference +0.733 (95 % interval +0.700 to +0.760)" in said
    assert "speed     900 tokens/s (median), peak memory 1.5 GiB, 0:00:02 in training steps" in said
    assert f"next      tunesmith predict {name} ROWS --out answers.jsonl" in said
    assert found["headline"] == HEADLINE and found["run"] == str(run.path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("killed", ["stale (it ended without a word): train, step 120 of 120", "tunesmith run", "gap +"]),
        ("paused", ["stopped: train, step 120 of 120", "recipe.yaml"]),
        ("broken", ["failed: evaluate", "proof x failed", "mend what is said above"]),
        ("fresh", ["stale (it ended without a word): prepare"]),
        ("latest", ["run "]),
    ],
)
def test_show_says_what_next(
    runs: Path, name: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = listed(capsys, "show", name, "--runs-dir", str(runs))
    assert [word for word in words if word not in " ".join(said.split())] == []


def test_the_next_command_of_a_fork_finds_the_fork(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(runs, "fork-2", phase="stopped", step=1, steps=2)
    run.recipe_file.write_text("name: fork\n")
    _, said = listed(capsys, "show", "fork-2", "--runs-dir", str(runs))
    assert "recipe.yaml --fork --runs-dir" in said


def test_an_unknown_run_and_a_folder_in_s3_for_a_verb_that_writes(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "kiled", "--runs-dir", str(runs)]) == 2
    assert "did you mean 'killed'?" in capsys.readouterr().err
    assert main(["clean", "x", "--runs-dir", "s3://bucket/runs"]) == 2
    assert "only be looked at in S3" in capsys.readouterr().err


def test_words() -> None:
    assert [words.size(n) for n in (0, 999, 1000, 9960, 15e6, 2.34e9, 5e12)] == [
        "0 B", "999 B", "1.0 kB", "10 kB", "15 MB", "2.3 GB", "5.0 TB",
    ]  # fmt: skip
    assert [words.age(n) for n in (-5, 3, 61, 7300, 90000 * 4)] == ["0 s", "3 s", "1 min", "2 h", "4 d"]
    assert words.clock(3661.4) == "1:01:01" and words.shortened("abcdefghij", 5) == "ab…ij"


def test_a_list_is_light(runs: Path) -> None:
    script = (
        "import sys; from tunesmith.cli import main\n"
        f"assert main(['runs', '--runs-dir', {str(runs)!r}]) == 0\n"
        f"assert main(['show', 'killed', '--runs-dir', {str(runs)!r}]) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'boto3', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=os.environ)


DAMAGE = {
    "state.json": b'{"phase": "train",',
    "stages of a list/state.json": b"[]",
    "another program/state.json": b'{"heartbeat": "yesterday", "phase": 3}',
    "ended/state.json": b'{"ended": "well"}',
    "metrics.jsonl": b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n{"step": 3, "loss": 1.0}\n',
    "zeros/metrics.jsonl": b'{"step": 1, "loss": 2.0}\n\0\0\0\n',
    "no step/metrics.jsonl": b'{"loss": 2.0}\n',
    "latin/timing.jsonl": b'{"step": 1, "seconds": "caf\xe9"}\n',
    "report/report.json": b'{"headline": {"metric": "f1"}}',
}


@pytest.mark.parametrize("name", DAMAGE)
def test_one_damaged_file_hides_no_other_run(
    runs: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = name if name.startswith("report/") else name.rpartition("/")[2]
    run = make_run(runs, "damaged", phase="train", step=1)
    (run.path / file).parent.mkdir(exist_ok=True)
    (run.path / file).write_bytes(DAMAGE[name])
    found, said = listed(capsys, "runs", "--runs-dir", str(runs))
    assert [one["name"] for one in found["runs"] if one["state"] == "unreadable"] == ["damaged"]
    assert len(found["runs"]) == 6 and "5 runs under" in said
    (line,) = [line for line in said.splitlines() if line.startswith("damaged")]
    assert f"unreadable: {run.path / file}" in line
    assert main(["show", "damaged", "--runs-dir", str(runs)]) == 2
    assert f"where: {run.path / file}" in capsys.readouterr().err


def test_show_names_a_broken_proof(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ('{"proofs": [', '{"proofs": [{"name": "x"}]}', '{"proofs": 3}'):
        (runs / "killed" / "proofs.json").write_text(text)
        assert main(["show", "killed", "--runs-dir", str(runs)]) == 2
        assert "proofs.json is damaged" in capsys.readouterr().err


def test_what_is_listed_can_be_shown(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One rule of what a run is. A checkpoint has a state too, and is none."""
    (runs / "killed" / "recipe.yaml").unlink()
    (runs / "fresh" / "state.json").unlink()
    folder = runs / "killed" / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    for name in ("state.json", "MANIFEST.json"):
        (folder / name).write_text("{}")
    for one in listed(capsys, "runs", "--runs-dir", str(runs))[0]["runs"]:
        listed(capsys, "show", one["name"], "--runs-dir", str(runs))
    assert "has no recipe.yaml" in listed(capsys, "show", "killed", "--runs-dir", str(runs))[1]
    assert main(["show", str(folder), "--runs-dir", str(runs)]) == 2


def test_a_runs_dir_that_is_none(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs / "killed" / "metrics.jsonl"
    for place, told in ((file, f"{file} is a file"), (runs / "killed", "killed is itself a run")):
        for verb in (["runs"], ["show", "x"], ["plot", "latest"]):
            assert main([*verb, "--runs-dir", str(place)]) == 2
            assert told in capsys.readouterr().err


def test_show_of_a_failed_run_fits_the_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = Run(runs / "broken")
    long = "a figure beyond " * 12
    run.write_state(ended={"exit": 3, "phase": "evaluate", "error": f"proof x failed\n  fix:   {long}"})
    proof = {"name": "x", "passed": False, "figure": 2, "limit": 1, "detail": long}
    run.write_json(run.proofs_file, {"proofs": [proof]})
    monkeypatch.chdir(runs.parent)
    _, said = listed(capsys, "show", "broken")
    assert max(map(len, said.splitlines())) <= 80 and " ".join(said.split()).count("a figure beyond") == 24


def test_a_headline_without_an_interval(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(runs / "paused")
    one = HEADLINE | {"difference": {"value": 0.7, "low": None, "high": None}}
    run.write_json(run.report / "report.json", {"headline": one})
    _, said = listed(capsys, "show", "paused", "--runs-dir", str(runs))
    assert "difference +0.700\n" in said
