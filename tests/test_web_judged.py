"""Judged answers: rows that `prepare` reads and an adapter goes on from, never half a line, never one lost."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_project import make_project
from tiny_run import reports, write_run

from tunesmith.data.formats.examples import read_file
from tunesmith.data.row import Manner
from tunesmith.errors import OutOfRoom, TunesmithError
from tunesmith.recipe_file import load_recipe
from tunesmith.run import Run
from tunesmith.serve.web import judged
from tunesmith.serve.web.judged import FILES, Judgement, counts, keep, next_lines, take_back

ASKED = (("system", "You read reports."), ("user", "Stage IV, ದೊಡ್ಡ \u2028 <script>alert(1)</script>\r\nend"))


def judgement(number: int = 0, **changes: object) -> Judgement:
    given: dict[str, object] = {
        "id": f"answer-{number:08d}", "model": "tuned", "prompt": ASKED, "answer": '{"stage": "IV"}', "verdict": "good",
    }  # fmt: skip
    return Judgement(**(given | changes))  # type: ignore[arg-type]


def lines(folder: Path, place: str = "train") -> list[dict[str, object]]:
    path = folder / FILES[place]
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]] if path.exists() else []


def test_rows_are_read_as_any_others_and_learn_the_answer_alone(tmp_path: Path) -> None:
    talk = (("user", "first"), ("assistant", "unjudged"), ("user", "second"))
    keep(tmp_path, None, judgement(1))
    keep(tmp_path, None, judgement(2, prompt=talk, verdict="bad", corrected="what it should be"))
    first, second = read_file(tmp_path / "feedback.jsonl", Manner())
    assert [turn.content for turn in first.prompt] == [content for _, content in ASKED]
    assert first.answer == '{"stage": "IV"}' and first.slices == {"judged": "good"}
    assert second.answer == "what it should be" and second.slices == {"judged": "corrected"}
    assert [turn.content for turn in second.messages if turn.learned] == ["what it should be"]
    assert lines(tmp_path)[1]["said"] == '{"stage": "IV"}'


def test_a_bad_answer_waits_for_its_correction(tmp_path: Path) -> None:
    assert keep(tmp_path, None, judgement(verdict="bad")) == "bad"
    assert counts(tmp_path) == {"train": 0, "bad": 1, "held_out": 0}
    assert keep(tmp_path, None, judgement(verdict="bad", corrected="better")) == "train"
    assert counts(tmp_path) == {"train": 1, "bad": 0, "held_out": 0}
    keep(tmp_path, None, judgement(verdict="good"))
    assert [one["completion"] for one in lines(tmp_path)] == ['{"stage": "IV"}']
    assert take_back(tmp_path, "answer-00000000") and not take_back(tmp_path, "answer-00000000")
    assert counts(tmp_path) == {"train": 0, "bad": 0, "held_out": 0}


def test_prompts_of_held_out_rows_are_kept_apart(tmp_path: Path) -> None:
    held = reports(4, seed=3, name="held")
    run = write_run(tmp_path / "run", reports(4), validation=held[:2], test=held[2:])
    for number, row in enumerate(held):
        asked = (
            ("system", "another"),
            ("user", f"  {row.asked.upper()}\n"),
        )  # as the check of leaks reads it
        assert keep(run.path, run, judgement(number, prompt=asked)) == "held_out"
    assert keep(run.path, run, judgement(9, prompt=(("user", reports(1)[0].asked),))) == "train"
    assert counts(run.path) == {"train": 1, "bad": 0, "held_out": 4}


def test_many_at_once_are_all_kept(tmp_path: Path) -> None:
    def some(first: int) -> None:
        for number in range(first, first + 25):
            keep(tmp_path, None, judgement(number, answer=f"answer {number} " * 300))

    threads = [threading.Thread(target=some, args=(100 * i,)) for i in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    found = [str(one["completion"]) for one in lines(tmp_path)]
    assert sorted(found) == sorted(f"answer {100 * i + j} " * 300 for i in range(8) for j in range(25))


KEEPER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_web_judged import judgement
from tunesmith.serve.web.judged import keep
for number in range(100000):
    keep(Path(sys.argv[1]), None, judgement(number, answer="x" * 5000))
    print(number, flush=True)
"""


def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(tmp_path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        for said in child.stdout:
            if int(said) == 20:
                os.kill(child.pid, signal.SIGKILL)
                break
        acknowledged = 20 + sum(1 for _ in child.stdout)
    assert (
        keep(tmp_path, None, judgement(999_999)) == "train"
    )  # its lock went with it; half a line is cut off
    found = [one["id"] for one in lines(tmp_path)]
    assert found[: acknowledged + 1] == [f"answer-{i:08d}" for i in range(acknowledged + 1)]
    assert found[-1] == "answer-00999999"


def test_half_a_line_of_a_crash_is_cut_off(tmp_path: Path) -> None:
    keep(tmp_path, None, judgement(1))
    with (tmp_path / "feedback.jsonl").open("a") as file:
        file.write('{"id": "answer-torn", "prompt": [{"ro')
    keep(tmp_path, None, judgement(2))
    assert [one["id"] for one in lines(tmp_path)] == ["answer-00000001", "answer-00000002"]


def test_a_full_disk_keeps_the_old_judgement_and_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, None, judgement(1))
    before = (tmp_path / "feedback.jsonl").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(judged.os, "fsync", full)
    with pytest.raises(OutOfRoom):
        keep(tmp_path, None, judgement(1, verdict="bad", corrected="better"))
    assert (tmp_path / "feedback.jsonl").read_bytes() == before


def test_half_a_character_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TunesmithError, match="half of a character"):
        keep(tmp_path, None, judgement(answer="\ud83d"))
    assert counts(tmp_path)["train"] == 0


# ---- training goes on from them


def trained(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *words], cwd=folder, capture_output=True, text=True, timeout=1000
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "data", [{}, {"format": "prompt_completion", "columns": {"completion": "completion"}}]
)
def test_prepare_reads_them_and_the_adapter_goes_on(tmp_path: Path, data: dict[str, object]) -> None:
    """The command that the page shows, typed as it stands: rows prepared, training begun from the run's adapter."""
    short = {"max_steps": 2, "epochs": 1, "evaluate_every": 2, "save_every": 2}
    path = make_project(tmp_path, rows=24, train=short, data=data)
    trained(tmp_path, "run", str(path), "--runs-dir", str(tmp_path / "runs"), "--until", "train")
    run = Run(tmp_path / "runs" / "tiny")
    for number in range(8):
        asked = (("user", f"tumour {number} judged"),)
        keep(
            run.path,
            run,
            judgement(number, prompt=asked, answer="wrong", verdict="bad", corrected=f"node {number}"),
        )
    command = next_lines(run.path, run)["command"]
    words = shlex.split(command)[1:]
    trained(
        tmp_path,
        *words,
        "--until",
        "train",
        "--set",
        "train.learning_rate=1e-9",
    )
    again = Run(tmp_path / "runs" / "tiny-feedback")
    rows = [json.loads(line) for line in (again.data / "train.jsonl").read_text().splitlines()]
    assert [row["messages"][-1]["content"] for row in rows] == [f"node {i}" for i in range(8)]
    held, kept = ((one.data / "validation.ids.npy").read_bytes() for one in (run, again))
    assert held == kept  # validation is as it was, though a recipe's own format doesn't fit these rows
    recipe = load_recipe(again.recipe_file)
    assert recipe.tune.from_adapter == str(run.adapter)
    assert (again.adapter / "adapter_model.safetensors").is_file()
    old, new = (load_file(one.adapter / "adapter_model.safetensors") for one in (run, again))
    moved = max(float(abs(new[key].float() - old[key].float()).max()) for key in old)
    learned = min(float(abs(old[key].float()).max()) for key in old if "lora_B" in key)
    assert (
        moved < 1e-6 < 1e-4 < learned
    )  # steps of next to nothing leave it where it was: a new one's B begins at 0


TYPED = '{"prompt": "by hand", "completion": "yes"}'


@pytest.mark.parametrize(
    ("before", "stay"), [(TYPED, 1), (TYPED + '\n{"prompt": "ha', 1), ('{"prompt": "ha', 0), ("[1]", 0)]
)
def test_a_row_that_somebody_typed_without_a_line_end_stays(tmp_path: Path, before: str, stay: int) -> None:
    """Editors may leave the last line's end out; what a crash leaves of a row is no whole one."""
    (tmp_path / FILES["train"]).write_text(before)
    keep(tmp_path, None, judgement(1))
    kept = (tmp_path / FILES["train"]).read_text()
    assert counts(tmp_path)["train"] == len(lines(tmp_path)) == stay + 1
    (tmp_path / FILES["train"]).write_text(kept + before)
    assert take_back(tmp_path, judgement(1).id)
    assert [row["prompt"] for row in lines(tmp_path)] == ["by hand"] * 2 * stay
