"""Rows × Contract × generator -> a file of answers, resumable after SIGKILL.

Answers are appended to OUT.partial as they are finished: first a line with the key, then a line an answer. When all are
there, they are written to OUT in the order of the rows, and the partial file goes. The key hashes everything that an
answer depends on (prompts, contract, decoding, weights); it stands in each line of OUT as `made_by`. Answers under
another key are made anew. What the task reads in an answer is not kept but read again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.contract import Contract
from tunesmith.errors import RowError, RunLocked
from tunesmith.example import Example, Message
from tunesmith.generate.protocol import Decoding, Generated, Generator, Guide
from tunesmith.run import disk_error, write_atomic
from tunesmith.tasks import Task

FORMAT = 2
Slot = tuple[int, int]  # (row, sample)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as text. `tokens` and `logprob` count the token that ended it."""

    answer: str
    stopped: bool
    tokens: int
    logprob: float
    token_logprobs: tuple[float, ...]
    token_ends: tuple[int, ...]
    """Character of the answer behind each token; empty unless the task asks for it (`by_token`)."""


def answer_rows(
    examples: Sequence[Example],
    contract: Contract,
    generator: Generator,
    task: Task,
    decoding: Decoding,
    out: Path,
    on_done: Callable[[int], object] | None = None,
    guide: Guide | None = None,
    asked: Sequence[Sequence[Message]] | None = None,
) -> None:
    """Writes a JSON line for each row and sample to `out`: id, prompt, answer, parsed, problems, gold (null for a row
    without), stopped, tokens, logprob, sample (where there are several), made_by; document, slices, facts and rejected
    where the row has them; token_logprobs and token_ends where the task asks for them (`by_token`).

    `asked`: the turns that each row is asked by, instead of its own; `prompt` is the row's own all the same.
    `on_done` gets the number of answers that have come since it was last called, first those that were there already.
    Raises RowError where a prompt leaves no room for its answer, RunLocked where another process writes this file.
    """
    turns = [example.prompt for example in examples] if asked is None else asked
    prompts = [_prompt(contract, example, one) for example, one in zip(examples, turns, strict=True)]
    _refuse_overlong(examples, prompts, decoding.max_tokens, generator.room)
    by_token = bool(getattr(task, "by_token", False))
    key = _key(examples, prompts, contract, decoding, generator, guide, by_token)
    report = on_done or (lambda done: None)
    answers = _finished(out, examples, decoding.samples, key)
    partial = out.with_name(f"{out.name}.partial")
    if answers is None:
        with _opened(partial) as file:
            answers = _kept(file, key)
            report(len(answers))
            for made in generator.generate(
                prompts, decoding, contract.stop_ids, done=frozenset(answers), guide=guide
            ):
                answers[made.index, made.sample] = one = _answer(contract, made, by_token)
                _append(file, partial, {"row": made.index, "sample": made.sample} | asdict(one))
                report(1)
    else:
        report(len(answers))
    lines = _lines(examples, answers, task, decoding.samples, key)
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    # half of a surrogate pair can't be UTF-8; backslashreplace writes it as JSON's own \ud800
    write_atomic(out, content.encode("utf-8", "backslashreplace"))
    partial.unlink(missing_ok=True)


def _prompt(contract: Contract, example: Example, turns: Sequence[Message]) -> Sequence[int]:
    try:
        return array("i", contract.prompt_ids(turns))  # a tenth of a list's memory
    except RowError as error:
        raise RowError(
            f"row {example.id}: {error.what}", where=error.where or example.source or None, fix=error.fix
        ) from error


def _refuse_overlong(
    examples: Sequence[Example], prompts: Sequence[Sequence[int]], max_tokens: int, room: int
) -> None:
    over = [(e, len(p)) for e, p in zip(examples, prompts, strict=True) if len(p) + max_tokens > room]
    if not over:
        return
    shown = ", ".join(f"{example.id} ({length} tokens)" for example, length in over[:5])
    more = f" and {len(over) - 5} more" if len(over) > 5 else ""
    raise RowError(
        f"{len(over)} of {len(examples)} prompts leave no room for an answer of {max_tokens} tokens: the model has "
        f"{room} positions for both",
        where=f"rows {shown}{more}",
        fix=f"shorten them to {max(room - max_tokens, 0)} tokens, or lower evaluate.decoding.max_tokens "
        "(predict: --max-tokens)",
    )


def _key(
    examples: Sequence[Example],
    prompts: Sequence[Sequence[int]],
    contract: Contract,
    decoding: Decoding,
    generator: Generator,
    guide: Guide | None,
    by_token: bool,
) -> str:
    made_with = [FORMAT, contract.sha256, asdict(decoding), generator.key, guide and guide.key, by_token]
    digest = hashlib.sha256(json.dumps(made_with).encode())
    for example, prompt in zip(examples, prompts, strict=True):
        digest.update(json.dumps([example.id, list(prompt)]).encode())
    return digest.hexdigest()[:16]


def _answer(contract: Contract, made: Generated, by_token: bool) -> Answer:
    each = tuple(round(value, 5) for value in made.token_logprobs) if by_token else ()
    ends = _token_ends(contract, made.ids) if by_token else ()
    text = contract.decode(made.ids)
    return Answer(text, made.stopped, len(made.ids) + made.stopped, made.logprob, each, ends)


def _token_ends(contract: Contract, ids: Sequence[int]) -> tuple[int, ...]:
    """The character of the answer behind each token; a letter of several tokens belongs to its last one."""
    ends: list[int] = []
    begin = kept = length = (
        0  # ids[begin:kept] is what a sentencepiece decoder needs to see before the next token
    )
    for place in range(1, len(ids) + 1):
        before, now = contract.decode(ids[begin:kept]), contract.decode(ids[begin:place])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            length += len(now) - len(before)
            begin, kept = kept, place
        ends.append(length)
    return tuple(ends)


def _lines(
    examples: Sequence[Example], answers: Mapping[Slot, Answer], task: Task, samples: int, key: str
) -> Iterator[dict[str, Any]]:
    """The rows' answers in order, read by the task."""
    for row, example in enumerate(examples):
        for sample in range(samples):
            one = answers[row, sample]
            parsed = task.parse(one.answer)
            yield {
                "id": example.id,
                "prompt": example.asked,
                "answer": one.answer,
                "parsed": parsed.value,
                "problems": list(parsed.problems),
                "gold": example.answer,
                **_of_row(example),
                "stopped": one.stopped,
                "tokens": one.tokens,
                "logprob": one.logprob,
                **({"sample": sample} if samples > 1 else {}),
                **(
                    {"token_logprobs": one.token_logprobs, "token_ends": one.token_ends}
                    if one.token_ends
                    else {}
                ),
                "made_by": key,
            }


def _of_row(example: Example) -> dict[str, Any]:
    """What `evaluate --from` needs to score the file by itself."""
    document = "" if example.document == example.id else example.document
    kept = {
        "document": document,
        "slices": dict(example.slices),
        "facts": dict(example.facts),
        "rejected": example.rejected,
    }
    return {name: value for name, value in kept.items() if value}


# ---- what is on disk already


def made_by(out: Path) -> str:
    """The key of a whole file of answers; empty where there is none."""
    if not out.is_file():
        return ""
    with out.open("rb") as file:
        return str(_json(file.readline()).get("made_by", ""))


def _finished(out: Path, examples: Sequence[Example], samples: int, key: str) -> dict[Slot, Answer] | None:
    """The answers in `out`, if it is whole and was made under this key."""
    if not out.is_file():
        return None
    slots = [(row, sample) for row in range(len(examples)) for sample in range(samples)]
    rows = [_json(line) for line in out.read_bytes().splitlines()]
    if len(rows) != len(slots) or any(row.get("made_by") != key for row in rows):
        return None
    if any(row.get("id") != examples[slot[0]].id for row, slot in zip(rows, slots, strict=True)):
        return None
    return {slot: _read(row) for slot, row in zip(slots, rows, strict=True)}


@contextmanager
def _opened(partial: Path) -> Iterator[IO[bytes]]:
    """The partial file for reading and appending, held for this process."""
    try:
        file = partial.open("a+b")
    except OSError as error:
        raise disk_error(error, partial) or error from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLocked(
                "another process writes these answers",
                where=str(partial),
                fix="wait for it, or name another file",
            ) from None
        yield file


def _kept(file: IO[bytes], key: str) -> dict[Slot, Answer]:
    """The answers that are in the partial file under this key. The file then ends behind the last whole line."""
    file.seek(0)
    header = {"made_by": key}
    answers: dict[Slot, Answer] = {}
    end = 0
    for number, line in enumerate(file):
        row = _json(line)
        if not line.endswith(b"\n") or (row != header if number == 0 else "logprob" not in row):
            break
        if number:
            answers[row["row"], row["sample"]] = _read(row)
        end += len(line)
    file.truncate(end)
    if not end:
        _append(file, Path(file.name), header)
    return answers


def _append(file: IO[bytes], path: Path, row: Mapping[str, Any]) -> None:
    try:
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()  # to the kernel, which outlives a killed process
    except OSError as error:
        raise disk_error(error, path) or error from None


def _json(line: bytes) -> dict[str, Any]:
    """A line's object; empty where it was torn."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _read(row: Mapping[str, Any]) -> Answer:
    each, ends = (tuple(row.get(name, ())) for name in ("token_logprobs", "token_ends"))
    return Answer(row["answer"], row["stopped"], row["tokens"], row["logprob"], each, ends)
