"""Which systems answer the scored rows, and what each of them is: report/systems.json. No model, no torch.

A system is a file predictions/NAME.jsonl:

tuned, base                          the adapter live on the base as trained, and that base without it
tuned-constrained, base-constrained  the same, held to the task's schema (evaluate.constrained)
zero-shot, 3-shot, 3-nearest, prompt-NAME    the base asked by one of evaluate.prompts
base-nf4, base-int8                  the base held so, where export.quantized names it and the recipe doesn't already
majority, nearest, and the task's own    floors: answers that need no model
anything else                        made by export, or given (evaluate RUN --from NAME.jsonl)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith import console
from tunesmith.errors import TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.run import Run, write_atomic

Kind = Literal["tuned", "base", "floor", "prompt", "constrained", "quantised", "exported", "other"]
SYSTEMS_FILE = "systems.json"
HELD = ("nf4", "int8")  # ways to hold a base that a card trains on as well
EXPORTED = re.compile(r"merged|nf4|int8|gguf-.+")
_OURS = re.compile(r"(tuned|base)-constrained|zero-shot|\d+-(shot|nearest)|prompt-.+|base-(nf4|int8)")
_EVALUATES = ("tuned", "base", "floor", "prompt", "constrained", "quantised")
_FLOORS = {
    "majority": ("majority", "the most common answer of the training rows, whatever is asked"),
    "nearest": ("nearest row", "the answer of the training row that is nearest by TF-IDF"),
    "dictionary": (
        "dictionary",
        "the names that training rows annotate, wherever they stand; every pair of them",
    ),
    "gold_pairs": (
        "every gold pair",
        "every pair of the row's own gold entities; entities as the dictionary finds them",
    ),
}


@dataclass(frozen=True)
class System:
    """A column of the report."""

    name: str
    kind: Kind
    shown: str
    """Title of the column."""
    note: str
    """What it is, in one line."""
    weights: str = ""
    """Which model answers: tuned, base, nf4 or int8; empty for a floor."""
    prompt: str = ""
    """The one of evaluate.prompts that it is asked by."""
    constrained: bool = False
    """Held to the task's schema."""


def answering(recipe: Recipe) -> list[System]:
    """The systems in which a model answers, those of one model side by side."""
    how, given = recipe.model.quantize, recipe.evaluate
    held = f" ({recipe.model.dtype}{'' if how == 'none' else f', held in {how}'})"
    made = [System("tuned", "tuned", "tuned", f"the adapter live on its base as trained{held}", "tuned")]
    base = [System("base", "base", "base", f"the base as the adapter was trained on it{held}", "base")]
    if recipe.tune.method == "full":
        made = [System("tuned", "tuned", "tuned", f"all weights, as trained{held}", "tuned")]
    if given.constrained:
        note = "the same model, each answer held to the schema while it is written"
        made.append(
            System("tuned-constrained", "constrained", "tuned, constrained", note, "tuned", constrained=True)
        )
        base.append(
            System("base-constrained", "constrained", "base, constrained", note, "base", constrained=True)
        )
    base += [_prompted(prompt) for prompt in given.prompts]
    return made + base + _quantised(recipe)


def prompt_name(prompt: str) -> str:
    """The system that one of evaluate.prompts makes: its own name, `prompt-STEM` for a file."""
    return f"prompt-{Path(prompt).stem}" if prompt.endswith(".txt") else prompt


def _prompted(prompt: str) -> System:
    count, _, how = prompt.partition("-")
    if prompt.endswith(".txt"):
        shown, note = Path(prompt).stem, f"the base, with {prompt} as its system prompt"
    elif prompt == "zero-shot":
        shown, note = "zero-shot", "the base, told in a system prompt what form answers have"
    elif how == "shot":
        shown, note = (
            prompt,
            f"the base, with {count} training rows as earlier turns, drawn once for all rows",
        )
    else:
        shown, note = prompt, f"the base, with the {count} nearest training rows (TF-IDF) as earlier turns"
    return System(prompt_name(prompt), "prompt", f"base, {shown}", note, "base", prompt=prompt)


def _quantised(recipe: Recipe) -> list[System]:
    if recipe.model.quantize != "none":
        return []  # the base is quantised as it is
    wanted = {kind.lower() for kind in recipe.export.quantized}
    return [
        System(f"base-{kind}", "quantised", f"base, {kind}", f"the base held in {kind}, untrained", kind)
        for kind in HELD
        if kind in wanted
    ]


def floors(names: Iterable[str]) -> list[System]:
    """Answers that need no model."""
    made = []
    for name in names:
        shown, note = _FLOORS.get(name, (name, "the task's own: answers that need no model"))
        made.append(System(name, "floor", shown, note))
    return made


def settle(run: Run, systems: Sequence[System]) -> None:
    """Writes report/systems.json, and removes the predictions of systems that a former recipe named.

    What export made stays: it is known by its name, which none of ours is like.
    """
    kept = {system.name for system in systems}
    before = run.read_json(run.report / SYSTEMS_FILE)
    for path in [*run.predictions.glob("*.jsonl"), *run.predictions.glob("*.jsonl.partial")]:
        name = path.name.removesuffix(".partial").removesuffix(".jsonl")
        ours = _OURS.fullmatch(name) or before.get(name, {}).get("kind") in _EVALUATES
        if ours and name not in kept:
            path.unlink()
    others = {
        name: one for name, one in before.items() if isinstance(one, dict) and one.get("kind") == "other"
    }
    _write(run, others | {one.name: _told(one) for one in systems})


def forget_merged(run: Run) -> None:
    """Where tuned has answered anew, the answers of what export made (by another decoding, say) match no more."""
    found = [path for path in sorted(run.predictions.glob("*.jsonl")) if EXPORTED.fullmatch(path.stem)]
    for path in found:
        path.unlink()
        console.note(
            f"{path.stem} is left out of the report until it is exported again: tuned has answered anew"
        )


def give(run: Run, name: str, lines: bytes, note: str) -> None:
    """Sets another system's predictions beside the run's own. TunesmithError where the name is one of these."""
    before = run.read_json(run.report / SYSTEMS_FILE)
    known = before.get(name, {}).get(
        "kind", "exported" if (run.predictions / f"{name}.jsonl").exists() else ""
    )
    ours = name in (*_FLOORS, "tuned", "base") or _OURS.fullmatch(name) or EXPORTED.fullmatch(name)
    if known not in ("", "other") or ours:
        raise TunesmithError(
            f"this run has a system of its own that is called {name}",
            where=str(run.predictions),
            fix="give the file another name: a system is called as its file",
        )
    run.predictions.mkdir(parents=True, exist_ok=True)
    write_atomic(run.predictions / f"{name}.jsonl", lines)
    told = {key: one for key, one in before.items() if isinstance(one, dict)}
    _write(run, told | {name: _told(System(name, "other", name, note))})


def _told(one: System) -> dict[str, str]:
    return {"kind": one.kind, "shown": one.shown, "note": one.note}


def _write(run: Run, told: Mapping[str, Mapping[str, str]]) -> None:
    run.report.mkdir(parents=True, exist_ok=True)
    run.write_json(run.report / SYSTEMS_FILE, told)


def described(run: Run) -> dict[str, dict[str, str]]:
    """name → kind, shown, note of every predictions file: as systems.json says, or made by export."""
    known = run.read_json(run.report / SYSTEMS_FILE)
    names = sorted(path.stem for path in run.predictions.glob("*.jsonl"))
    plain = {"kind": "exported", "note": "made by export, scored on the same rows"}
    made = {name: plain | {"shown": name} for name in names} | exported(run)
    return {name: known.get(name, made[name]) for name in [*known, *names] if name in names}


def exported(run: Run) -> dict[str, dict[str, str]]:
    """name → kind, shown, note of what export.json says was made."""
    found = run.read_json(run.export_file).get("artifacts", {})
    return {name: _exported(name, one) for name, one in found.items()}


def _exported(name: str, one: Mapping[str, Any]) -> dict[str, str]:
    kind, held = str(one.get("type", "")), {"nf4": "NF4", "int8": "8 bits"}
    shown, what = {
        "quantised": (f"merged, {name}", f"the merged model held in {held.get(kind, kind)}"),
        "gguf": (f"GGUF {kind}", f"the merged model as GGUF {kind}, run by llama.cpp"),
        "adapter": ("GGUF adapter", "the adapter as GGUF over the base's GGUF, run by llama.cpp"),
    }.get(str(one.get("kind")), (name, f"the adapter merged into the base ({kind})"))
    told = [what, f"{one['bytes'] / 1e6:,.1f} MB"]
    if one.get("tokens_per_second"):
        told.append(f"{one['tokens_per_second']:,.0f} tokens/s on the machine that exported it")
    if "logits" in one:
        told.append(f"{one['logits']['greedy']:.1%} of likeliest tokens as the live adapter's")
    return {"kind": "exported", "shown": shown, "note": "; ".join(told)}
