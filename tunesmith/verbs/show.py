"""show: one run, all that its files say about it, and what to type next."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.store.s3 import is_s3
from tunesmith.view import words
from tunesmith.view.next_command import next_command
from tunesmith.view.series import Series, gaps, load_series
from tunesmith.view.sources import Source, look_at
from tunesmith.view.summary import Summary, summarise

_SPLITS = ("train", "validation", "test")
_PATHS = (
    "adapter",
    "merged",
    "gguf",
    "report/report.html",
    "predictions",
    "checkpoints",
    "tensorboard",
    "log.txt",
)


def show(name: str, runs_dir: str | Path) -> dict[str, Any]:
    """Prints the run; returns its summary, proofs and last figures."""
    with look_at([name], runs_dir) as (source,):
        run, now = source.run, time.time()
        one, series, proofs = summarise(source, now), load_series(run), run.proofs()
        recipe = run.read_json(run.lock_file).get("recipe", {})
        splits = run.read_json(run.data / "report.json").get("splits", {})
        _print_state(one, now)
        _print_recipe(recipe)
        _print_rows(splits)
        _print_training(series, one)
        if one.headline:
            _print_headline(one.headline)
        _print_proofs(proofs)
        _print_paths(source)
        console.say(
            f"next      {next_command(one, source, str(runs_dir))}"
        )  # in one line: it is there to be copied
        last = {name: one.values[-1] for name, one in series.items()}
        return {
            "run": one.address, "headline": one.headline, "summary": one.to_json(), "last": last, "proofs": proofs,
        }  # fmt: skip


def _print_state(one: Summary, now: float) -> None:
    console.say_under("run", f"{one.name} ({words.size(one.size)}) in {one.address}")
    step = "" if one.step is None else f", step {one.step} of {one.steps or '?'}"
    seen = "" if one.heartbeat is None else f", last sign {words.age(now - one.heartbeat)} ago"
    stale = " (it ended without a word)" if one.state == "stale" else ""
    console.say_under("state", f"{one.state}{stale}: {one.phase}{step}{seen}")
    if one.error:
        console.say_under("", one.error)


def _print_recipe(recipe: Mapping[str, Any]) -> None:
    if not recipe:
        return

    def get(key: str) -> str:
        return words.number(recipe.get(key))

    quantized = "" if recipe.get("model.quantize") == "none" else f", {get('model.quantize')}"
    console.say_under("base", f"{get('model.base')}, {get('model.dtype')}{quantized}")
    if recipe.get("tune.method") == "lora":
        modules = recipe.get("tune.target_modules")
        on = "all linears" if modules == "all" else " ".join(modules or ())
        console.say_under(
            "tune",
            f"LoRA rank {get('tune.rank')}, alpha {get('tune.alpha')}, dropout {get('tune.dropout')}, {on}",
        )
    else:
        console.say_under("tune", get("tune.method"))
    rate = f"learning rate {get('train.learning_rate')} {get('train.schedule')}"
    console.say_under(
        "train",
        f"{get('train.batch')} rows a step, {rate}, {get('train.optimizer')}, seed {get('seed')}",
    )


def _print_rows(splits: Mapping[str, Any]) -> None:
    known = [name for name in (*_SPLITS, *splits) if name in splits]
    parts = [f"{name} {splits[name]['rows']:,}" for name in dict.fromkeys(known)]
    if "train" in splits and splits["train"].get("tokens"):
        train = splits["train"]
        parts[0] += f" ({train['tokens']:,} tokens, {train['learned_tokens'] / train['tokens']:.0%} learned)"
    if parts:
        console.say_under("rows", ", ".join(parts))


def _print_training(series: dict[str, Series], one: Summary) -> None:
    if "loss" not in series:
        return
    text = f"training {series['loss'].values[-1]:.4f} at step {series['loss'].steps[-1]}"
    validated = gaps(series)
    if validated:
        last = validated[-1]
        text += f", validation {last.validation:.4f} at step {last.step}"
        if last.gap is not None:
            text += f", gap {last.gap:+.4f}"
    console.say_under("loss", text)
    if one.best_loss is not None:
        console.say_under("best", f"validation {one.best_loss:.4f} at step {one.best_step}")
    if "tokens_per_second" in series:
        speed = f"{statistics.median(series['tokens_per_second'].values):,.0f} tokens/s (median)"
        if "memory_gib" in series:
            speed += f", peak memory {max(series['memory_gib'].values):.1f} GiB"
        console.say_under("speed", f"{speed}, {words.clock(sum(series['seconds'].values))} in training steps")


def _print_headline(found: Mapping[str, Any]) -> None:
    by = found["difference"]
    console.say_under(
        "headline",
        f"{found['metric']}: base {found['base']:.3f}, tuned {found['tuned']:.3f} (n = {found['n']})",
    )
    # one document has no interval
    interval = "" if by["low"] is None else f" (95 % interval {by['low']:+.3f} to {by['high']:+.3f})"
    console.say_under("", f"difference {by['value']:+.3f}{interval}")


def _print_proofs(proofs: list[dict[str, Any]]) -> None:
    if not proofs:
        return
    failed = [proof for proof in proofs if not proof["passed"]]
    console.say_under("proofs", f"{len(proofs) - len(failed)} passed, {len(failed)} failed")
    for proof in _merged(proofs):
        mark = "ok    " if proof["passed"] else "FAILED"
        console.say(
            f"  {mark}  {proof['name']}: {words.number(proof['figure'])} (limit {words.number(proof['limit'])})"
        )
        if not proof["passed"]:
            console.say_under("", proof["detail"])


def _merged(proofs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Proofs that differ only in their split, as one: name (train, validation)."""
    made: dict[tuple[object, ...], tuple[dict[str, Any], list[str]]] = {}
    for proof in proofs:
        name, _, split = proof["name"].rpartition("_")
        key: tuple[object, ...] = (proof["name"],)
        if split in _SPLITS and proof["passed"]:
            key = (name, str(proof["figure"]), str(proof["limit"]))
        made.setdefault(key, (proof, []))[1].append(split if len(key) > 1 else "")
    return [
        proof | {"name": f"{key[0]} ({', '.join(splits)})"} if len(key) > 1 else proof
        for key, (proof, splits) in made.items()
    ]


def _print_paths(source: Source) -> None:
    if is_s3(source.address):
        console.say_under("files", source.address)
        return
    there = [name for name in _PATHS if (source.run.path / name).exists()]
    console.say_under("files", " ".join(there))
