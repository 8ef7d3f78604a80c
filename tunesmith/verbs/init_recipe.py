"""The recipe that `init` writes: a value for what was found, each with its reason beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.look import Look

_COLUMN = 34  # where comments begin
_LONG = 4096  # tokens: rows over it are costly, so one in a hundred may be left out
_PIECE = 2048  # tokens of a piece of plain text
_STEPS = 300  # of the starter: a few minutes on two cores
_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*")
_WORDS_OF_YAML = {"true", "false", "null", "yes", "no", "on", "off", "~"}


@dataclass(frozen=True)
class Lengths:
    """Rows in tokens."""

    p50: int
    p90: int
    p99: int
    longest: int
    all: list[int]


@dataclass(frozen=True)
class Findings:
    """All that the recipe is written from."""

    name: str
    out: Path
    base: str
    seen: Look
    others: dict[str, Look]
    task: str
    unparsable: int
    """Answers that are no JSON object where most are."""
    lengths: Lengths
    positions: int | None
    script: str | None

    @property
    def on_starter(self) -> bool:
        """Whether the embedded model is the base."""
        return self.base == "starter"

    @property
    def documents(self) -> int:
        """Examples in all of the file, by those of the rows looked at. A text is one, however many pieces it has."""
        seen = self.seen
        return round(seen.rows * len(seen.examples) / seen.looked)

    @property
    def examples(self) -> int:
        """Rows to learn from in all of the file: of plain text its pieces."""
        if self.seen.manner.format != "text":
            return self.documents
        most, _ = limit(self)
        own = self.lengths.all[: len(self.seen.examples)]
        return round(self.documents * sum(-(-one // most) for one in own) / len(own))

    @property
    def in_pieces(self) -> str:
        """What is said behind the number of rows where some are cut into pieces."""
        pieces = self.examples
        return f", in some {pieces:,} pieces" if pieces > self.documents else ""

    @property
    def kept(self) -> float:
        """Share of the rows that are not too long."""
        is_text = self.seen.manner.format == "text"
        return 1.0 if is_text else 1 - limit(self)[1] / len(self.lengths.all)


def recipe_text(found: Findings) -> str:
    """The recipe as YAML."""
    parts = [_head(found), _model(found), _data(found), _tune(found), _train(found), _evaluate(found)]
    return "\n".join("\n".join(part) + "\n" for part in parts)


def _head(found: Findings) -> list[str]:
    return [
        f"# Written by `tunesmith init {found.seen.path}`. Every value is yours to change.",
        f"#   tunesmith check {found.out}",
        f"#   tunesmith run {found.out}",
        f"name: {found.name}",
        "seed: 0",
    ]


def _model(found: Findings) -> list[str]:
    if found.on_starter:
        return [
            "model:",
            _line(
                "base",
                "starter",
                "the tiny embedded model: shows that it all works; --base ID for a real one",
            ),
            _line("dtype", "float32", "a CPU is fastest in fp32"),
        ]
    return [
        "model:",
        _line("base", found.base),
        _line("quantize", "nf4", "frozen weights in 4 bits; `none` where the card has room"),
        _line("dtype", "bfloat16", "float16 on a T4 or V100"),
    ]


def _data(found: Findings) -> list[str]:
    seen = found.seen
    lines = ["data:", _line("train", str(seen.path), f"{seen.rows:,} rows{found.in_pieces}")]
    for split, other in found.others.items():
        why = (
            "chooses the checkpoint"
            if split == "validation"
            else "chooses nothing: the headline stands on it"
        )
        lines.append(_line(split, str(other.path), f"{other.rows:,} rows; {why}"))
    if seen.manner.processor:
        lines.append(_line("processor", seen.manner.processor, seen.format.why))
    else:
        lines.append(_line("format", seen.manner.format, "" if seen.manner.columns else seen.format.why))
    if seen.manner.columns:
        lines.append("  columns:".ljust(_COLUMN) + "# the format's column: yours")
        lines += [_line(key, column, deep=4) for key, column in seen.manner.columns.items()]
        if seen.guessed:
            lines.append(f"  # a guess: {seen.guessed}")
    if seen.role:
        lines.append(_line("instruction_role", seen.role.value, seen.role.why))
    lines += _length(found)
    lines += _split(found)
    if found.script:
        lines.append("  checks:")
        lines.append(_line("script", "error", f"the answers are written in {found.script}", deep=4))
    return lines


def _length(found: Findings) -> Iterator[str]:
    lengths = found.lengths
    most, over = limit(found)
    if found.seen.manner.format == "text":
        yield _line(
            "max_length",
            most,
            f"longer texts become several rows; the longest has {lengths.longest:,} tokens",
        )
        return
    yield _line(
        "max_length",
        most,
        f"half of the rows have up to {lengths.p50:,} tokens, the longest {lengths.longest:,}",
    )
    if over:
        yield _line(
            "overlong", "drop", f"leaves out {over:,} of {len(lengths.all):,} rows; an answer is never cut"
        )
    elif not found.seen.whole:
        yield _line("overlong", "drop", "not all rows were counted: leaves out what is longer still")


def limit(found: Findings) -> tuple[int, int]:
    """data.max_length, and how many of the rows looked at are longer.

    All rows, unless the longest are far out; never more than the model has positions.
    """
    lengths = found.lengths
    longest = lengths.longest if lengths.longest <= _LONG else lengths.p99
    margin = 1 if found.seen.whole else 1.25
    step = 64 if longest <= 1024 else 256
    most = -(-int(longest * margin) // step) * step
    if found.seen.manner.format == "text":
        most = min(most, _PIECE)
    most = min(most, found.positions or most)
    return most, sum(one > most for one in lengths.all)


def shares(found: Findings) -> dict[str, float]:
    """Shares of the rows to set aside for validation and test; none where a file is given, or rows are too few."""
    rows = found.documents
    if rows < 10 or "validation" in found.others:
        return {}
    if rows >= 100_000:
        share = 0.01
    elif rows >= 10_000:
        share = 0.05
    else:
        share = 0.1
    return {"validation": share} | ({"test": share} if "test" not in found.others and rows >= 30 else {})


def _split(found: Findings) -> list[str]:
    seen, set_aside = found.seen, shares(found)
    lines: list[str] = []
    for split, share in set_aside.items():
        why = (
            "chooses the checkpoint"
            if split == "validation"
            else "chooses nothing: the headline stands on it"
        )
        lines.append(_line(split, share, f"some {round(share * found.examples):,} rows; {why}", deep=4))
    for key, choice in (("group", seen.group), ("stratify", seen.stratify)):
        if choice:
            lines.append(_line(key, choice.value, choice.why, deep=4))
    if not set_aside and not found.others:
        few = "documents (blank lines part them)" if seen.manner.format == "text" else "rows"
        lines.insert(0, f"    # too few {few} to set any aside: nothing will be scored. Give 10 or more.")
    if not any(not line.lstrip().startswith("#") for line in lines):
        return [line[2:] for line in lines]
    return ["  split:", *lines]


def _tune(found: Findings) -> list[str]:
    lines = [
        "tune:",
        _line("rank", 16, "width of the adapter; 64 for a new language or style"),
        _line("alpha", 32),
    ]
    if not found.on_starter:
        dropout = 0.05 if found.examples >= 5000 else 0.1
        lines.append(_line("dropout", dropout, "less with many rows, more with few"))
    return [*lines, _line("target_modules", "all", "every linear of every layer")]


def epochs(found: Findings) -> int:
    """More of them for fewer rows."""
    rows = max(1, found.examples)
    if found.on_starter:
        return min(20, max(1, round(_STEPS * 8 / rows)))
    return next((times for most, times in ((1_000, 5), (20_000, 3), (100_000, 2)) if rows < most), 1)


def _train(found: Findings) -> list[str]:
    times, batch = epochs(found), 8 if found.on_starter or found.examples < 1000 else 16
    kept = found.examples * found.kept * (1 - sum(shares(found).values()))
    steps = max(1, round(times * kept / batch))
    lines = ["train:", _line("epochs", times, f"{found.examples:,} rows: some {steps:,} steps")]
    if found.on_starter and steps > 1.5 * _STEPS:
        lines.append(_line("max_steps", _STEPS, "enough to see it learn on a CPU; take it out with a card"))
        steps = _STEPS
    lines.append(_line("batch", batch, "examples per optimiser step"))
    if found.on_starter:
        lines.append(_line("learning_rate", "2e-3", "a 4 M model takes more than an 8B one (2e-4)"))
    else:
        lines.append(_line("learning_rate", "2e-4", "halve it if the loss jumps"))
    lines.append(_line("warmup", 0.05, "below 1: a share of all steps"))
    if steps / times > 1000:
        lines += [_line("evaluate_every", 500, "steps"), _line("save_every", 500)]
    return lines


def _evaluate(found: Findings) -> list[str]:
    if found.unparsable:  # `extraction` can't read an answer that is none; auto leaves it to the data check
        task, why = "auto", "extraction, as most answers are JSON objects; say so once the others are mended"
    elif found.task == "extraction":
        task, why = "extraction", "scores by field of the JSON answers"
    elif found.task == "annotations":
        task, why = "annotations", "entities by name, span and id; relations by id pair"
    else:
        task, why = "text", "words shared with the known answer"
    lines = ["evaluate:", _line("task", task, why)]
    scored = found.others.get("test") or found.others.get("validation")
    rows = len(scored.examples) if scored else round(found.examples * max(shares(found).values(), default=0))
    most = 100 if found.on_starter else 500
    if rows > most:
        lines.append(
            _line("rows", most, "each is answered twice, by base and tuned; `all` for the last word")
        )
    return lines


# ---- a line


def _line(key: str, value: object, comment: str = "", deep: int = 2) -> str:
    text = f"{' ' * deep}{key}: {_yaml(value)}"
    return f"{text.ljust(_COLUMN - 3)}   # {comment}" if comment else text


def _yaml(value: object) -> str:
    text = str(value)
    if not isinstance(value, str) or re.fullmatch(r"\d+e-\d+", text):
        return text
    if (
        _PLAIN.fullmatch(text)
        and text.lower() not in _WORDS_OF_YAML
        and not re.fullmatch(r"[\d.eE_-]+", text)
    ):
        return text
    return json.dumps(text, ensure_ascii=False)
