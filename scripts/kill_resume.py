"""SIGKILL a training again and again, resume it, and compare it with one that nobody disturbed.

    python scripts/kill_resume.py --kills 20            bf16 and NF4, dropout 0.1, packing, accumulation 2

Each kind trains a tiny random Llama three times by `tunesmith train`: undisturbed; killed at random moments, inside
saves and after checkpoints until the counts are reached, then to its end; and with another seed (the cold start).
Required: metrics.jsonl equal byte by byte, the adapter's sha256 equal, and both different from the cold start.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny_project import adapter_sha256, make_project, metrics  # noqa: E402

KINDS = {"bf16": "none", "nf4": "nf4"}
STEPS_PER_KILL = 60


@dataclass
class Kill:
    """One life of the process and how it ended."""

    aim: str
    seconds: float
    resumed_at: str
    lines_to: int
    newest: int
    published: bool
    left_behind: bool


def start(recipe: Path, runs: Path) -> subprocess.Popen[bytes]:
    """`tunesmith train` as a user starts it, with one CPU thread; what it says is appended to runs.log."""
    command = [sys.executable, "-c", "import sys; from tunesmith.cli import main; sys.exit(main())"]
    with runs.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*command, "train", str(recipe), "--runs-dir", str(runs)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )


def finish(recipe: Path, runs: Path) -> float:
    """Trains to the end; returns the seconds it took."""
    begin = time.monotonic()
    code = start(recipe, runs).wait()
    if code != 0:
        sys.exit(f"{recipe.stem} ended with {code}:\n{runs.with_suffix('.log').read_text()[-3000:]}")
    return time.monotonic() - begin


def published(run: Path) -> set[str]:
    """Names of whole checkpoints."""
    return {path.parent.name for path in run.glob("checkpoints/step-*/MANIFEST.json")}


def kill_one(aim: str, recipe: Path, runs: Path, draw: random.Random, usual: float) -> Kill | None:
    """One life, ended by SIGKILL where `aim` says; None if it came to its own end before."""
    run = runs / recipe.stem
    before, left_before = published(run), set(run.glob("checkpoints/.*.tmp"))
    said = len(runs.with_suffix(".log").read_bytes()) if runs.with_suffix(".log").exists() else 0
    begin = time.monotonic()
    process = start(recipe, runs)
    deadline = begin + (draw.uniform(0, usual) if aim == "anywhere" else 1e9)
    while process.poll() is None and time.monotonic() < deadline:
        if aim == "in a save" and set(run.glob("checkpoints/.*.tmp")) - left_before:
            break
        if aim == "after a checkpoint" and published(run) - before:
            deadline, aim = time.monotonic() + draw.uniform(0, 0.4), "after a checkpoint "
        time.sleep(0.0002)
    process.kill()
    if process.wait() != -signal.SIGKILL:
        return None
    heard = runs.with_suffix(".log").read_bytes()[said:].decode(errors="replace")
    resumed = re.search(r"resumed at step (\d+) \(exact: (\w+)", heard)
    lines = metrics(run).splitlines() if (run / "metrics.jsonl").exists() else []
    steps = [int(match[1]) for line in lines if (match := re.match(rb'{"step": (\d+)', line))]
    return Kill(
        aim.strip(),
        time.monotonic() - begin,
        f"{resumed[1]} ({'exact' if resumed[2] == 'yes' else 'INEXACT'})" if resumed else "-",
        steps[-1] if steps else 0,
        max((int(name.rpartition("-")[2]) for name in published(run)), default=0),
        bool(published(run) - before),
        bool(list(run.glob("checkpoints/.*.tmp"))),
    )


def enough(done: list[Kill], kills: int) -> dict[str, bool]:
    """Whether the counts are reached: kills, of which 2/5 after a checkpoint of that life, 1/5 inside a save."""
    counts = {
        "kills": (len(done), kills),
        "kills after a checkpoint was published in that life": (
            sum(k.published for k in done),
            2 * kills / 5,
        ),
        "kills that left a temporary folder behind": (sum(k.left_behind for k in done), kills / 5),
    }
    return {
        f"{name}: {count} (at least {least:g})": count >= least for name, (count, least) in counts.items()
    }


def campaign(kind: str, folder: Path, kills: int, draw: random.Random) -> bool:
    """All of one kind; prints the table and whether everything that is required holds."""
    rows, batch = 75, 8
    sections = {
        "model": {"quantize": KINDS[kind]},
        "train": {
            "epochs": max(1, kills * STEPS_PER_KILL // -(-rows // batch)),
            "save_every": 10,
            "evaluate_every": 25,
            "keep": 3,
        },
    }
    whole = make_project(folder, rows, f"whole-{kind}", **sections)
    killed = make_project(folder, rows, f"killed-{kind}", **sections)
    cold = make_project(folder, rows, f"cold-{kind}", **sections, seed=1)
    runs = folder / "runs"
    whole_seconds = finish(whole, runs)
    cold_seconds = finish(cold, runs)
    done: list[Kill] = []
    aims = ("in a save", "after a checkpoint", "anywhere")
    while not all(enough(done, kills).values()):
        one = kill_one(aims[len(done) % 3], killed, runs, draw, usual=min(whole_seconds, 15.0))
        if one is None:
            print(f"{kind}: the run came to its end after {len(done)} kills; raise STEPS_PER_KILL")
            break
        done.append(one)
    finish(killed, runs)
    print(f"\n{kind}: undisturbed {whole_seconds:.0f} s, cold start {cold_seconds:.0f} s")
    head = f"{'kill':>4}  {'aim':<18} {'after s':>7}  {'resumed at':>12}  {'lines to':>8}  {'newest':>6}"
    print(f"{head}  published  .tmp left")
    for number, k in enumerate(done, start=1):
        print(
            f"{number:>4}  {k.aim:<18} {k.seconds:>7.2f}  {k.resumed_at:>12}  {k.lines_to:>8}  {k.newest:>6}"
            f"  {'yes' if k.published else '-':>9}  {'yes' if k.left_behind else '-':>9}"
        )
    a, b, c = (runs / f"{name}-{kind}" for name in ("whole", "killed", "cold"))
    checks = {
        **enough(done, kills),
        "every resume exact": not any("INEXACT" in k.resumed_at for k in done),
        f"metrics.jsonl equal byte by byte ({len(metrics(a))} bytes)": metrics(a) == metrics(b),
        f"adapter sha256 equal ({adapter_sha256(a)[:16]}…)": adapter_sha256(a) == adapter_sha256(b),
        f"cold start differs ({adapter_sha256(c)[:16]}…)": (
            adapter_sha256(a) != adapter_sha256(c) and metrics(a) != metrics(c)
        ),
    }
    for text, holds in checks.items():
        print(f"{'ok    ' if holds else 'FAILED'}  {text}")
    return all(checks.values())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="per kind (20)")
    parser.add_argument("--kind", choices=[*KINDS, "both"], default="both")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; printed")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"--seed {seed}")
    draw = random.Random(seed)
    kinds = list(KINDS) if arguments.kind == "both" else [arguments.kind]
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as folder:
        results = [campaign(kind, Path(folder) / kind, arguments.kills, draw) for kind in kinds]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
