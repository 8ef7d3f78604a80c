"""Rows through a generator into a file: content, resume after SIGKILL, what makes it start over, refusals."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import reports, write_byte_tokenizer

from tunesmith.answers import answer_rows
from tunesmith.contract import Contract
from tunesmith.errors import RowError, RunLocked
from tunesmith.example import Example, Message
from tunesmith.generate.protocol import Decoding, Generated, Guide
from tunesmith.tasks import Parsed, make_task

ROWS = reports(9, name="test")
TASK = make_task("extraction", None, [row.answer or "" for row in ROWS])
DECODING = Decoding(max_tokens=40)


class Echo:
    """Answers with the end of the prompt and its own numbers, the last prompt first; needs no model."""

    def __init__(self, key: str = "echo", room: int = 4096) -> None:
        self.key, self.room = key, room
        self.asked: list[tuple[int, int]] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        stop_ids: frozenset[int],
        done: AbstractSet[tuple[int, int]] = frozenset(),
        guide: Guide | None = None,
    ) -> Iterator[Generated]:
        for index in reversed(range(len(prompts))):
            for sample in range(decoding.samples):
                if (index, sample) in done:
                    continue
                self.asked.append((index, sample))
                letters = [one for one in prompts[index][-60:-5] if one > 5]
                ids = [*letters[: decoding.max_tokens], 6 + index, 6 + sample]
                yield Generated(index, sample, ids, index % 3 > 0, -0.1 * (index + 1) / 3, [-0.1] * len(ids))


@pytest.fixture
def contract(tmp_path: Path) -> Contract:
    return Contract.make(write_byte_tokenizer(tmp_path / "tokenizer"), template="llama3")


def write(
    contract: Contract,
    out: Path,
    generator: Echo | None = None,
    rows: Sequence[Example] = ROWS,
    **changes: Any,
) -> tuple[list[tuple[int, int]], list[int]]:
    """What the generator was asked for, and what on_done heard."""
    generator, heard = generator or Echo(), []
    decoding = replace(DECODING, **changes)
    answer_rows(rows, contract, generator, TASK, decoding, out, on_done=heard.append)
    return generator.asked, heard


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def killer(count: int) -> Callable[[int], None]:
    """An on_done that kills its own process when that many answers have come."""
    left = [count + 1]  # the first call tells of those that were there

    def hear(_: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return hear


# ---- content


def test_lines_stand_in_row_order_with_all_that_is_known(contract: Contract, tmp_path: Path) -> None:
    asked, heard = write(contract, tmp_path / "out.jsonl")
    lines = lines_of(tmp_path / "out.jsonl")
    assert asked[0] == (8, 0)  # they came in another order
    assert heard == [0] + [1] * 9
    assert [line["id"] for line in lines] == [row.id for row in ROWS]
    assert [line["gold"] for line in lines] == [row.answer for row in ROWS]
    assert [line["stopped"] for line in lines] == [index % 3 > 0 for index in range(9)]
    first = lines[1]
    known = "id prompt answer parsed problems gold document slices stopped tokens logprob"
    assert list(first) == [*known.split(), "token_logprobs", "token_ends", "made_by"]
    assert first["prompt"] == ROWS[1].messages[0].content
    assert first["logprob"] == -0.1 * 2 / 3
    ids = [one for one in contract.prompt_ids(ROWS[1].prompt)[-60:-5] if one > 5][:40]
    assert first["answer"] == contract.decode([*ids, 7, 6])
    assert first["tokens"] == 43  # 40 letters, two numbers, and the stop
    assert first["token_ends"][-1] == len(first["answer"]) and len(first["token_ends"]) == 42
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_answers_are_read_by_the_task(contract: Contract, tmp_path: Path) -> None:
    gold = ROWS[0].answer or ""

    class Knows(Echo):
        def generate(self, *given: Any, **more: Any) -> Iterator[Generated]:
            for made in super().generate(*given, **more):
                said = gold if made.index == 0 else "no idea"
                yield replace(made, ids=contract.tokens_of(said))

    write(contract, tmp_path / "out.jsonl", Knows())
    right, wrong = lines_of(tmp_path / "out.jsonl")[:2]
    assert right["parsed"] == json.loads(gold) and right["problems"] == []
    assert wrong["parsed"] is None and wrong["problems"][0].startswith("unparsable")


def test_rows_without_an_answer_and_several_samples(contract: Contract, tmp_path: Path) -> None:
    unlabelled = [replace(row, messages=row.messages[:1]) for row in ROWS]
    write(contract, tmp_path / "out.jsonl", rows=unlabelled, samples=2, temperature=1.0)
    lines = lines_of(tmp_path / "out.jsonl")
    assert [(line["id"], line["sample"]) for line in lines] == [(r.id, s) for r in ROWS for s in (0, 1)]
    assert all(line["gold"] is None for line in lines)
    assert lines[0]["answer"] != lines[1]["answer"]
    labelled = tmp_path / "labelled.jsonl"
    write(contract, labelled, samples=2, temperature=1.0)
    # gold decides nothing about an answer
    assert [line["answer"] for line in lines_of(labelled)] == [line["answer"] for line in lines]


def test_text_that_is_not_unicode_stays_valid_json(contract: Contract, tmp_path: Path) -> None:
    class Odd:
        def parse(self, answer: str) -> Parsed:
            return Parsed("half \ud800 and \u2028")

    answer_rows(ROWS[:1], contract, Echo(), Odd(), DECODING, tmp_path / "out.jsonl")  # type: ignore[arg-type]
    (line,) = (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]
    assert json.loads(line)["parsed"] == "half \ud800 and \u2028"


# ---- resume


CHILD = """
import sys
from pathlib import Path
import test_answers as t
from tunesmith.contract import Contract
contract = Contract.make(Path(sys.argv[1]), template="llama3")
t.answer_rows(t.ROWS, contract, t.Echo(), t.TASK, t.DECODING, Path(sys.argv[2]), on_done=t.killer(int(sys.argv[3])))
"""


def test_killed_again_and_again_it_ends_as_if_nothing_had_happened(
    contract: Contract, tmp_path: Path
) -> None:
    write(contract, tmp_path / "whole.jsonl")
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for killed, after in enumerate((2, 0, 3, 1)):
        child = [sys.executable, "-c", CHILD, str(tmp_path / "tokenizer"), str(out), str(after)]
        ended = subprocess.run(child, env=environment, capture_output=True, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        assert not out.exists()
        assert len(partial.read_bytes().splitlines()) == 1 + (2, 2, 5, 6)[killed]
    asked, heard = write(contract, out)
    assert asked == [(2, 0), (1, 0), (0, 0)] and heard == [6, 1, 1, 1]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()
    assert write(contract, out) == ([], [9])  # and once more: nothing to do


def stopped_after(contract: Contract, out: Path, count: int) -> Path:
    """A partial file with that many answers."""

    class Stop(Exception):
        pass

    left = [count + 1]

    def hear(_: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    with pytest.raises(Stop):
        answer_rows(ROWS, contract, Echo(), TASK, DECODING, out, on_done=hear)
    return out.with_name(f"{out.name}.partial")


@pytest.mark.parametrize("tail", [b'{"row": 0, "sample": 0, "answ', b"\0\0\0\0", b'{"row": 0}\n', b"[]\n"])
def test_a_torn_line_is_dropped(contract: Contract, tmp_path: Path, tail: bytes) -> None:
    write(contract, tmp_path / "whole.jsonl")
    partial = stopped_after(contract, tmp_path / "out.jsonl", 4)
    partial.write_bytes(partial.read_bytes() + tail)
    asked, _ = write(contract, tmp_path / "out.jsonl")
    assert len(asked) == 5
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_line_torn_before_its_end_is_made_again(contract: Contract, tmp_path: Path) -> None:
    """A line without its line break would otherwise swallow the next one."""
    partial = stopped_after(contract, tmp_path / "out.jsonl", 4)
    partial.write_bytes(partial.read_bytes()[:-1])
    asked, _ = write(contract, tmp_path / "out.jsonl")
    assert len(asked) == 6
    partial = stopped_after(contract, tmp_path / "other.jsonl", 4)
    partial.write_bytes(partial.read_bytes()[:7])  # not even the key is whole
    asked, _ = write(contract, tmp_path / "other.jsonl")
    assert len(asked) == 9
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "other.jsonl").read_bytes()


@pytest.mark.parametrize("where", ["partial", "finished"])
def test_whatever_an_answer_depends_on_starts_it_over(contract: Contract, tmp_path: Path, where: str) -> None:
    other_rows = [replace(ROWS[0], messages=(Message("user", "Else."), *ROWS[0].messages[1:])), *ROWS[1:]]
    other_ids = [replace(ROWS[0], id="renamed"), *ROWS[1:]]
    other_contract = Contract.make(tmp_path / "tokenizer", template="llama3", system="Answer in JSON.")
    changes: dict[str, dict[str, Any]] = {
        "rows": {"rows": other_rows},
        "ids": {"rows": other_ids},
        "fewer": {"rows": ROWS[:-1]},
        "contract": {"contract": other_contract},
        "model": {"generator": Echo("another")},
        "tokens": {"max_tokens": 41},
        "temperature": {"temperature": 0.5},
        "seed": {"seed": 1},
        "nothing": {},
    }
    for name, change in changes.items():
        out = tmp_path / f"{name}.jsonl"
        if where == "partial":
            stopped_after(contract, out, 4)
        else:
            write(contract, out)
        given = {"contract": contract} | change
        rows = given.get("rows", ROWS)
        asked, _ = write(out=out, **given)
        left = (5 if where == "partial" else 0) if name == "nothing" else len(rows)
        assert len(asked) == left, name
        assert [line["id"] for line in lines_of(out)] == [row.id for row in rows]


def test_gold_and_task_are_read_anew_without_the_model(contract: Contract, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(contract, out)
    corrected = [
        replace(row, messages=(row.messages[0], Message("assistant", "{}", learned=True))) for row in ROWS
    ]
    asked, heard = write(contract, out, rows=corrected)
    assert asked == [] and heard == [9]
    assert all(line["gold"] == "{}" for line in lines_of(out))


def test_a_damaged_file_is_made_again(contract: Contract, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(contract, out)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (b"".join(lines[:-1]), b"".join(reversed(lines)), b"not ours\n"):
        out.write_bytes(damaged)
        asked, _ = write(contract, out)
        assert len(asked) == 9 and out.read_bytes() == whole


# ---- refusals


def test_overlong_prompts_are_named_before_anything_runs(contract: Contract, tmp_path: Path) -> None:
    lengths = [len(contract.prompt_ids(row.prompt)) for row in ROWS]
    room = max(lengths) + 40
    write(contract, tmp_path / "out.jsonl", Echo(room=room))  # fits to the token
    over = [row.id for row, length in zip(ROWS, lengths, strict=True) if length == max(lengths)]
    generator = Echo(room=room - 1)
    with pytest.raises(RowError, match=f"{len(over)} of 9 prompts leave no room") as caught:
        write(contract, tmp_path / "other.jsonl", generator)
    assert all(f"{id} ({max(lengths)} tokens)" in str(caught.value.where) for id in over)
    assert generator.asked == [] and not (tmp_path / "other.jsonl.partial").exists()


def test_a_prompt_with_a_control_token_is_named(contract: Contract, tmp_path: Path) -> None:
    bad = replace(ROWS[3], messages=(Message("user", "ends <|eot_id|> here"),))
    with pytest.raises(RowError, match=f"row {bad.id}: .*control token") as caught:
        write(contract, tmp_path / "out.jsonl", rows=[*ROWS[:3], bad])
    assert caught.value.where == bad.source


def test_two_processes_on_one_file(contract: Contract, tmp_path: Path) -> None:
    partial = stopped_after(contract, tmp_path / "out.jsonl", 4)
    before = partial.read_bytes()
    with partial.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunLocked):
            write(contract, tmp_path / "out.jsonl")
    assert partial.read_bytes() == before
