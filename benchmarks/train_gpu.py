"""Training speed and memory on a GPU: `tunesmith train` itself beside TRL + Liger and Unsloth, on the same token ids.

    python benchmarks/train_gpu.py make --base DIR [--shape llama-3.1-8b] [--tokenizer DIR]
    python benchmarks/train_gpu.py prepare --base DIR --kind full --work DIR      # rows, their token ids once for all
    python benchmarks/train_gpu.py group full --base DIR --work DIR [--rounds 2]  # us and the peers in turn
    python benchmarks/train_gpu.py ours --base DIR --kind full --work DIR         # one measurement, one JSON line
    python benchmarks/train_gpu.py unsloth --base DIR --kind full --work DIR      # likewise; or trl
    python benchmarks/train_gpu.py table --work DIR

`--kind full`: rows of 2,048 tokens, all learned; `ragged`: about 190 prompt and 90 answer tokens; `mission`: the rows
of the cancer mission in --rows. Each measurement is a process of its own and appends to WORK/results.jsonl. A group
(GROUPS below) measures its ways in turn, A B C A B C; what is in the results already isn't measured again, so a series
can be stopped and gone on with. Several groups may run at once, each on a card of its own (CUDA_VISIBLE_DEVICES).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_inputs import SHAPES, make_base, make_rows

ROWS = {"full": 800, "ragged": 4000, "mission": 0}
_DEFAULT = "unsloth --warm-up 2 --steps 4"  # 4 rows x 4, its own recomputation
_RAGGED = "unsloth --kind ragged --warm-up 4 --steps 8"
_PACKED = f"{_RAGGED} --packing --recompute none --accumulation 1"
GROUPS = {
    "full": ("ours --steps 6", _DEFAULT, f"{_DEFAULT} --recompute none"),
    "ragged": (
        "ours --kind ragged --steps 48",
        _RAGGED,
        _PACKED,
        "ours --kind ragged --steps 48 --dropout 0.1",
    ),
    "cap": ("ours --steps 6 --memory 22", f"{_DEFAULT} --memory 22"),
    "lean": ("ours --steps 6 --memory 7.2",),
    "fp8": ("ours --steps 12 --fp8",),
    "parallel": ("ours --steps 8", "ours --steps 8 --parallel ddp"),
}
LINEARS = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def recipe(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Our defaults but for what a measurement is about."""
    data: dict[str, Any] = {"train": f"{rows_of(arguments)}/train.jsonl"}
    data |= {"full": {"format": "text"}, "ragged": {"format": "prompt_completion"}}.get(arguments.kind, {})
    train: dict[str, Any] = {
        "batch": arguments.batch,
        "max_steps": arguments.steps,
        "log_every": max(1, arguments.steps // 6),
        "save_every": max(1, arguments.steps // 2),
        "engine": arguments.engine,
    }
    if arguments.memory:
        train["memory"] = arguments.memory
    train |= {"fp8": True} if arguments.fp8 else {}
    train |= {"parallel": arguments.parallel} if arguments.parallel != "none" else {}
    return {
        "name": name,
        "model": {"base": str(arguments.base), "quantize": arguments.quantize},
        "data": data,
        "tune": {
            "rank": 16,
            "alpha": 32,
            "dropout": arguments.dropout,
            "target_modules": LINEARS[arguments.targets],
        },
        "train": train,
    }


def rows_of(arguments: argparse.Namespace) -> Path:
    return Path(arguments.rows or arguments.work / arguments.kind)


def tunesmith(verb: str, arguments: argparse.Namespace, name: str) -> float:
    """Runs the command line; returns its seconds."""
    path = arguments.work / f"{name}.yaml"
    path.write_text(json.dumps(recipe(arguments, name)))  # JSON is YAML
    begin = time.time()
    command = [sys.executable, "-m", "tunesmith.cli", verb, str(path), "--runs-dir", str(arguments.work)]
    subprocess.run(command, check=True)
    return time.time() - begin


def prepare(arguments: argparse.Namespace) -> None:
    """Rows where they are made here, and their token ids."""
    if not arguments.rows:
        vocabulary = json.loads((arguments.base / "config.json").read_text())["vocab_size"]
        make_rows(rows_of(arguments), arguments.kind, ROWS[arguments.kind], vocabulary)
    tunesmith("prepare", arguments, f"prepared-{arguments.kind}")


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """`tunesmith train` as a user calls it: loader, logging and a checkpoint included."""
    run = arguments.work / f"ours-{arguments.kind}-{os.getpid()}"  # others may be measured beside it
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(arguments.work / f"prepared-{arguments.kind}", run)
    seconds = tunesmith("train", arguments, run.name)
    timing = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    own = sum(line["seconds"] for line in timing[1:])
    tokens = metrics[-1]["tokens"] - metrics[0]["tokens"]
    steps = metrics[-1]["step"] - metrics[0]["step"]
    saving = timing[-1]["time"] - timing[0]["time"] - own  # of the checkpoint halfway
    each = [line["tokens_per_second"] for line in timing[1:]]
    plan = json.loads((run / "data" / "plan.json").read_text())["plan"]["note"]
    shutil.rmtree(run)
    special = [name for name in ("fp8",) if getattr(arguments, name)]
    special += [f"dropout {arguments.dropout:g}"] if arguments.dropout else []
    special += [arguments.parallel] if arguments.parallel != "none" else []
    return {
        "way": ", ".join([f"tunesmith ({arguments.engine})", *special]),
        "tokens_per_second": round(tokens / steps * 100 / (own / steps * 100 + saving)),
        "without_checkpoints": round(tokens / own),
        "least_most": [round(min(each)), round(max(each))],
        "checkpoint_seconds": round(saving, 2),
        "peak_gib": timing[-1]["memory_gib"],
        "peak_allocated_gib": timing[-1].get("allocated_gib"),
        "steps": steps,
        "tokens_a_step": round(tokens / steps),
        "whole_command_seconds": round(seconds, 1),
        "losses": [round(line["loss"], 4) for line in metrics[:3]],
        "plan": plan,
    }


def peer(arguments: argparse.Namespace) -> dict[str, Any]:
    from gpu_peers import Settings, train  # imports the peer: nothing of ours has loaded torch before

    return train(
        Settings(
            way=arguments.what,
            base=arguments.base,
            prepared=arguments.work / f"prepared-{arguments.kind}" / "data",
            output=arguments.work / arguments.what,
            quantize=arguments.quantize,
            recompute={"auto": "default", "none": "none", "full": "full"}[arguments.recompute],
            packing=arguments.packing,
            dropout=arguments.dropout,
            targets=LINEARS[arguments.targets],
            rows=arguments.peer_rows,
            accumulation=arguments.accumulation,
            steps=arguments.steps,
            warm_up=arguments.warm_up,
            memory=arguments.memory,
        )
    )


def table(work: Path) -> None:
    """Medians by way and setting, and the ratio to each peer under the same setting."""
    results = [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]
    for setting in dict.fromkeys(one["setting"] for one in results):
        group = [one for one in results if one["setting"] == setting]
        print(f"\n{setting}")
        speeds: dict[str, float] = {}
        for way in dict.fromkeys(one["way"] for one in group):
            own = [one for one in group if one["way"] == way]
            speeds[way] = statistics.median(one["tokens_per_second"] for one in own)
            each = " · ".join(f"{one['tokens_per_second']:,}" for one in own)
            peak = max(one["peak_gib"] for one in own)
            print(f"  {way:42} {speeds[way]:8,.0f} tokens/s ({each}), peak {peak:.1f} GiB reserved")
            print(f"  {'':42} {own[-1].get('plan', '')}")
        for way, speed in speeds.items():
            for other, against in speeds.items():
                if way.startswith("tunesmith") and way != other:
                    print(f"  {way}: {speed / against:.3f} x {other}")


def group(arguments: argparse.Namespace) -> None:
    """The ways of a group in turn, `--rounds` times; what is measured already is left out."""
    file = arguments.work / "results.jsonl"
    for turn in range(1, arguments.rounds + 1):
        for way in GROUPS[arguments.group]:
            label = f"{arguments.base.name} {arguments.group} {turn}: {way}"
            done = (
                [json.loads(line).get("label") for line in file.read_text().splitlines()]
                if file.exists()
                else []
            )
            if label in done:
                continue
            command = [
                sys.executable,
                __file__,
                *way.split(),
                "--base",
                str(arguments.base),
                "--label",
                label,
            ]
            found = subprocess.run([*command, "--work", str(arguments.work)], capture_output=True, text=True)
            told = [line for line in found.stdout.splitlines() if line.startswith("RESULT")]
            print(label, *(told or [found.stdout[-1500:], found.stderr[-1500:]]), sep="\n", flush=True)


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "prepare", "group", "ours", "trl", "unsloth", "table"))
    parser.add_argument("group", nargs="?", choices=tuple(GROUPS), default="full", help="for `group`")
    parser.add_argument("--rounds", type=int, default=2, help="of a group")
    parser.add_argument("--label", help="marks a measurement in the results")
    parser.add_argument("--fp8", action="store_true", help="ours")
    parser.add_argument("--parallel", choices=("none", "ddp"), default="none", help="ours")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--kind", choices=tuple(ROWS), default="full")
    parser.add_argument("--rows", type=Path, help="folder with train.jsonl of your own")
    parser.add_argument("--work", type=Path, default=Path("bench"))
    parser.add_argument("--steps", type=int, default=24, help="ours, the first sixth warms up")
    parser.add_argument("--warm-up", type=int, default=3, help="steps of a peer before its --steps")
    parser.add_argument("--batch", type=int, default=16, help="rows a step, ours")
    parser.add_argument("--peer-rows", type=int, default=4, help="of a peer's micro-batch")
    parser.add_argument("--accumulation", type=int, default=4, help="a peer's micro-batches a step")
    parser.add_argument("--packing", action="store_true", help="a peer's")
    parser.add_argument("--recompute", choices=("auto", "none", "full"), default="auto", help="a peer's")
    parser.add_argument("--memory", type=float, default=0.0, help="GiB cap for all; 0: none")
    parser.add_argument("--targets", choices=tuple(LINEARS), default="all")
    parser.add_argument("--quantize", choices=("none", "nf4"), default="nf4")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--engine", choices=("auto", "fused", "reference"), default="auto")
    found = parser.parse_args()
    if found.kind == "mission" and not found.rows and found.what in ("prepare", "ours"):
        parser.error("--kind mission needs --rows, a folder with the mission's train.jsonl")
    return found


def main() -> None:
    arguments = arguments_of()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.what == "make":
        return make_base(arguments.base, arguments.shape, arguments.tokenizer)
    if arguments.what == "prepare":
        return prepare(arguments)
    if arguments.what == "table":
        return table(arguments.work)
    if arguments.what == "group":
        return group(arguments)
    result = ours(arguments) if arguments.what == "ours" else peer(arguments)
    cap = f", {arguments.memory:g} GiB" if arguments.memory else ""
    result["setting"] = (
        f"{arguments.base.name}, {arguments.quantize}, {arguments.kind} rows, {arguments.targets} linears{cap}"
    )
    result["label"] = arguments.label
    print("RESULT", json.dumps(result), flush=True)
    with (arguments.work / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    return None


if __name__ == "__main__":
    main()
