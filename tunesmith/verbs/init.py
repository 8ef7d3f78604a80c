"""init: looks at rows, says what it sees and why, and writes a commented recipe that `check` takes at once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import console
from tunesmith.base import resolve
from tunesmith.data.inspect.phi import personal
from tunesmith.data.look import Look, answers_of, look, repeated_prompts, same_way
from tunesmith.errors import AccessError, RecipeError
from tunesmith.recipe import Model
from tunesmith.recipe_file import load_recipe
from tunesmith.run import require_writable, write_atomic
from tunesmith.store import hub
from tunesmith.tasks.annotated.mentions import KINDS
from tunesmith.tasks.json_answer import read_object
from tunesmith.tasks.prose.script import main_script, script_letters
from tunesmith.tokenizer_files import TOKENIZER_FILES
from tunesmith.verbs.init_recipe import Findings, Lengths, limit, recipe_text

_WORDS = {
    "validation": ("validation", "valid", "val", "development", "devel", "dev"),
    "test": ("test", "testing"),
}
_TRAIN = re.compile(r"train(?:ing)?", re.IGNORECASE)
_SHOWN = 3
_NEARLY_ALL = 0.98


def init(rows: Path, base: str, out: Path | None, force: bool) -> dict[str, Any]:
    """Writes the recipe; nothing is downloaded unless `base` is a hub id, of which the tokenizer is needed."""
    name = _name(rows)
    out = out or Path(f"{name}.yaml")
    _may_write(out, force)
    seen = look(rows)
    others = _beside(rows, seen)
    task, unparsable = _task(seen)
    lengths, positions = _lengths(base, [seen, *others.values()])
    found = Findings(
        name=name,
        out=out,
        base=base,
        seen=seen,
        others=others,
        task=task,
        unparsable=unparsable,
        lengths=lengths,
        positions=positions,
        script=_script(seen),
    )
    _say_what(found)
    expected = [*_wrong(seen, others, unparsable)]
    for line in expected:
        _warn(line)
    write_atomic(out, recipe_text(found).encode("utf-8"))
    load_recipe(out)
    console.say(f"wrote     {out}: each value with its reason; read it once")
    if expected:
        console.say_under(
            "first",
            "`check` will end with what is said above: mend the rows, set a level in data.checks, or set them aside:\n"
            f"tunesmith check {out} --reject-to rejected.jsonl",
        )
    console.say(f"next      tunesmith check {out}\n          tunesmith run {out}")
    return {"recipe": str(out)}


def _name(rows: Path) -> str:
    """A name for the run folder, from the file's: medquad_qa.jsonl → medquad-qa."""
    stem = rows.name.split(".")[0] if not rows.name.startswith(".") else rows.stem
    words = re.findall(r"[A-Za-z0-9]+", stem)
    name = "-".join(words).lower()
    return name if name and name not in ("train", "data", "rows", "training") else _of_folder(rows, name)


def _of_folder(rows: Path, name: str) -> str:
    """train.jsonl is no name: its folder has one."""
    folder = "-".join(re.findall(r"[A-Za-z0-9]+", rows.absolute().parent.name)).lower()
    return folder or name or "my-task"


def _may_write(out: Path, force: bool) -> None:
    if out.is_dir():
        raise AccessError(f"{out} is a folder", where="--out", fix="give the name of a .yaml file")
    if out.exists() and not force:
        raise AccessError(
            f"{out} exists already", where="--out", fix="--out ANOTHER.yaml, or --force to write over it"
        )
    if not out.absolute().parent.is_dir():
        raise AccessError(f"there is no folder {out.parent}", where="--out", fix=f"mkdir -p {out.parent}")
    require_writable(out)


# ---- what is seen


def _beside(rows: Path, seen: Look) -> dict[str, Look]:
    """Files that lie beside train.… and are named the same but for the split, where their rows can be read alike."""
    if not _TRAIN.search(rows.name):
        return {}
    names = {one.name.lower(): one for one in sorted(rows.absolute().parent.iterdir())}
    found: dict[str, Look] = {}
    for split, words in _WORDS.items():
        for word in words:
            one = names.get(_TRAIN.sub(word, rows.name).lower())
            other = same_way(rows.parent / one.name, seen) if one else None
            if other:
                found[split] = other
                break
    return found


def _task(seen: Look) -> tuple[str, int]:
    """annotations where rows say what is annotated, extraction where answers are JSON objects; and how many of them
    are none then."""
    if seen.examples and all(example.facts.get("kind") in KINDS for example in seen.examples):
        return "annotations", 0
    answers = [answer for answer in answers_of(seen) if answer.strip()]
    objects = sum(read_object(answer).value is not None for answer in answers)
    if answers and 2 * objects > len(answers):
        return "extraction", len(answers) - objects
    return "text", 0


def _lengths(base: str, seen: list[Look]) -> tuple[Lengths, int | None]:
    """Tokens of every example that was looked at, by the base's own tokenizer; and the model's positions."""
    from tunesmith.contract import Contract

    folder, config = _tokenizer(base)
    contract = Contract.make(folder, instruction_role=seen[0].manner.instruction_role)
    examples = [example for one in seen for example in one.examples]
    counted = [
        len(made.ids)
        for start in range(0, len(examples), 512)
        for made in contract.encode_batch(examples[start : start + 512])
        if not isinstance(made, Exception)
    ]
    if not counted:
        raise RecipeError("no row fits the base's chat template", where="--base", fix="another base")
    p50, p90, p99 = (int(np.percentile(counted, q, method="inverted_cdf")) for q in (50, 90, 99))
    positions = config.get("max_position_embeddings")
    return Lengths(p50, p90, p99, max(counted), counted), positions if isinstance(positions, int) else None


def _tokenizer(base: str) -> tuple[Path, dict[str, Any]]:
    """Folder with the base's tokenizer, and its config; of a hub model only these files are downloaded."""
    if base == "starter" or Path(base).is_dir() or base.startswith((".", "/", "~")) or base.count("/") > 1:
        found = resolve(Model(base=base))
        return found.tokenizer_folder, found.config
    folder, _ = hub.fetch(base, None, None, (*TOKENIZER_FILES, "config.json"))
    config = folder / "config.json"
    return folder, json.loads(config.read_text("utf-8")) if config.is_file() else {}


def _script(seen: Look) -> str | None:
    """The script of nearly all answers, where it is not Latin."""
    mains = [main_script(script_letters(answer)) for answer in answers_of(seen)[:2000]]
    written = [main for main in mains if main]
    if not written:
        return None
    first = max(set(written), key=lambda one: (written.count(one), one))
    return first if first != "Latin" and written.count(first) >= 0.9 * len(written) else None


# ---- what is said


def _say_what(found: Findings) -> None:
    seen = found.seen
    say = console.say_under
    part = "" if seen.whole else f", {seen.looked:,} of them looked at"
    say("rows", f"{seen.path}: {seen.rows:,}{found.in_pieces}{part}")
    for split, other in found.others.items():
        say("", f"{other.path}: {other.rows:,}, taken as {split} rows")
    say("format", f"{seen.format.value}: {seen.format.why}")
    if seen.guessed:
        _warn(f"a guess: {seen.guessed}")
    if seen.role:
        say("role", f"{seen.role.value}: {seen.role.why}")
    answers = {"extraction": "JSON objects", "annotations": "lists of annotated entities and pairs"}
    say("task", f"{found.task}: the answers are {answers.get(found.task, 'texts')}")
    for key, choice in (("group", seen.group), ("stratify", seen.stratify)):
        if choice:
            say(key, f"{choice.value}: {choice.why}")
    lengths = found.lengths
    say(
        "tokens",
        f"half of the rows up to {lengths.p50:,}, 90 % up to {lengths.p90:,}, 99 % up to {lengths.p99:,}, "
        f"longest {lengths.longest:,} (tokenizer of {found.base})",
    )
    most, over = limit(found)
    if found.kept < _NEARLY_ALL:
        _warn(
            f"{over:,} of {len(lengths.all):,} rows are longer than the {most:,} tokens that {found.base} takes, "
            "and will be left out; a base with more positions (--base) takes them"
        )
    if found.script:
        say("script", f"{found.script}: an answer in another one will be an error")


def _warn(text: str) -> None:
    console.note(console.wrapped(f"warning: {text}", indent=2))


def _wrong(seen: Look, others: dict[str, Look], unparsable: int) -> list[str]:
    """What `check` will stop at."""
    found: list[str] = []
    for one in (seen, *others.values()):
        name = one.path.name
        if one.bad:
            listing = "\n  ".join(one.bad[:_SHOWN])
            found.append(f"{len(one.bad):,} rows of {name} can't be used:\n  {listing}")
        empty = sum(not answer.strip() for answer in answers_of(one))
        if empty:
            found.append(f"{empty:,} rows of {name} have an empty answer (check empty_answer)")
    if unparsable:
        found.append(f"{unparsable:,} answers are no JSON object, the others are (check unparsable)")
    for split, other in others.items():
        if repeated := repeated_prompts(seen, other):
            found.append(
                f"{repeated:,} {split} prompts stand in {seen.path.name} to the letter (check exact_leak)"
            )
    if seen.manner.format in ("messages", "sharegpt", "preference"):
        hits = [
            example.source
            for one in (seen, *others.values())
            for example in one.examples
            if _personal(example)
        ]
        if hits:
            found.append(
                f"{len(hits):,} rows hold what looks like a phone number, mail or address (check phi): {hits[0]}"
            )
    return found


def _personal(example: Any) -> bool:
    return any(personal(turn.content) for turn in example.messages)
