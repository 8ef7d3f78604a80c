"""How long scoring takes, and in how much memory: predictions of an extraction task, 2,000 draws of documents.

    python benchmarks/score_speed.py                    25,000, 50,000 and 100,000 rows; 100,000 of 20,000 documents
    python benchmarks/score_speed.py --rows 5000        another number

Reports of the starter (seven fields) answered by chance: a quarter of the fields taken from another row, every fiftieth
answer cut. Each size runs in a process of its own, whose peak memory is read at its end. Parts are timed by themselves
(reading the file, counting rows, drawing documents and making every interval), then `evaluate --from` as a whole: these
parts again, slices, studies, faults and next steps. Seconds are those of the processor, which others at work on the
same machine change little; the last column but two has the clock's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHAPES = ((25_000, 25_000), (50_000, 50_000), (100_000, 100_000), (100_000, 20_000))


def write(path: Path, rows: int, documents: int) -> None:
    """A predictions file; `rows` / `documents` of them stand in each document."""
    from tunesmith.starter import reports

    made, rng = reports.rows("train", rows), random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(made):
            said = {
                field: made[rng.randrange(rows)]["output"][field] if rng.random() < 0.25 else value
                for field, value in row["output"].items()
            }
            answer = json.dumps(said, ensure_ascii=False)
            line = {
                "id": row["id"],
                "document": f"document {number * documents // rows}",
                "prompt": row["input"],
                "answer": answer[:-9] if rng.random() < 0.02 else answer,
                "gold": json.dumps(row["output"], ensure_ascii=False),
                "slices": {"half": str(number % 2)},
                "stopped": True,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def parts(path: Path) -> dict[str, float]:
    """Seconds of each part, one after the other."""
    from tunesmith.evaluate.score import metrics_of
    from tunesmith.statistics import DRAWS, Drawn
    from tunesmith.tasks.score import examples_in, read_predictions, score_answers

    begin = time.process_time()
    lines = read_predictions(path)
    examples = examples_in(lines, str(path))
    read = time.process_time()
    task = _task([example.answer or "" for example in examples[:20_000]])
    scored = score_answers(lines, examples, task, str(path))
    counted = time.process_time()
    drawn = Drawn({"it": scored.counts}, scored.documents, DRAWS)
    for metric in metrics_of(task, scored).values():
        drawn.interval("it", metric)
    done = time.process_time()
    return {"read": read - begin, "count": counted - read, "draw": done - counted}


def whole(path: Path) -> dict[str, float]:
    """Seconds of what `evaluate --from` does, and the peak of memory in MB."""
    from tunesmith.evaluate.file_report import file_content, systems_of
    from tunesmith.recipe_file import load_recipe

    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml")
    clock, begin = time.perf_counter(), time.process_time()
    systems = systems_of(path, lambda rows: _task([row.answer or "" for row in rows[:20_000]]))
    content = file_content(recipe, path, systems)
    seconds, clock = time.process_time() - begin, time.perf_counter() - clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "whole": seconds,
        "clock": clock,
        "peak_mb": peak,
        "item_f1": content["scores"][path.stem]["item_f1"]["value"],
    }


def _task(golds: list[str]):  # type: ignore[no-untyped-def]
    from tunesmith.tasks import make_task

    return make_task("extraction", None, golds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int)
    parser.add_argument("--child", choices=("parts", "whole"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps({"parts": parts, "whole": whole}[given.child](given.file)))
        return
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    head = ("rows", "documents", "read", "count", "draw", "whole", "clock", "peak MB", "item F1")
    print(" ".join(f"{name:>9}" for name in head))
    for rows, documents in [(given.rows, given.rows)] if given.rows else SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "it.jsonl"
            write(path, rows, documents)
            found: dict[str, float] = {}
            for child in ("parts", "whole"):
                command = [sys.executable, __file__, "--child", child, "--file", str(path)]
                found |= json.loads(
                    subprocess.run(command, check=True, capture_output=True, text=True).stdout
                )
        seconds = [f"{found[name]:.1f}" for name in head[2:7]]
        cells = (
            f"{rows:,}",
            f"{documents:,}",
            *seconds,
            f"{found['peak_mb']:.0f}",
            f"{found['item_f1']:.4f}",
        )
        print(" ".join(f"{cell:>9}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
