"""The whole way at a real size: `tunesmith run` from rows to every artifact, each proved and scored.

    python benchmarks/whole_run.py --work DIR --tokenizer DIR [--shape llama-3.2-3b] [--export '{"gguf": ["Q4_K_M"]}']

A base of random weights and of the tokenizer's special tokens is made in the work folder; the rows are the starter's.
Each line that the command prints gets the seconds since its start; at the end come its seconds and its peak memory.
Random weights say nothing about scores: what is measured is time, memory, and whether proofs raise false alarms.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_inputs import SHAPES, make_base

ALL = {
    "gguf": ["F16", "Q8_0", "Q4_K_M"],
    "quantized": ["nf4", "int8"],
    "adapter_gguf": True,
    "imatrix": True,
    "ollama": {},
}


def base_of(arguments: argparse.Namespace) -> Path:
    """Made once; the ids in config.json are the tokenizer's."""
    from transformers import AutoTokenizer

    base: Path = arguments.work / arguments.shape
    if not (base / "config.json").is_file():
        make_base(base, arguments.shape, arguments.tokenizer)
        tokenizer = AutoTokenizer.from_pretrained(base)
        config = json.loads((base / "config.json").read_text())
        config |= {
            f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
        }
        (base / "config.json").write_text(json.dumps(config))
    return base


def recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    """The starter's task with a few rows of each part."""
    from tunesmith.starter import reports

    data = {}
    for part, count in (("train", 256), ("validation", 16), ("test", arguments.rows)):
        path = arguments.work / f"{part}.jsonl"
        with path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in reports.rows(part, count))
        data[part] = str(path)
    return {
        "name": "whole",
        "model": {"base": str(base_of(arguments)), "quantize": "nf4"},
        "data": data,
        "train": {"max_steps": arguments.steps, "batch": 16, "evaluate_every": arguments.steps},
        "evaluate": {"decoding": {"max_tokens": 16}},
        "export": arguments.export,
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--work", type=Path, required=True)
    options.add_argument(
        "--tokenizer", type=Path, required=True, help="folder with a byte-level BPE tokenizer"
    )
    options.add_argument("--shape", choices=tuple(SHAPES), default="llama-3.2-3b")
    options.add_argument("--rows", type=int, default=8, help="of the test part, answered by every artifact")
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--export", type=json.loads, default=ALL, help="the recipe's section, as JSON")
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    path = given.work / "whole.yaml"
    path.write_text(json.dumps(recipe(given)))
    command = [
        sys.executable,
        "-m",
        "tunesmith.cli",
        "run",
        str(path),
        "--runs-dir",
        str(given.work / "runs"),
    ]
    begin = time.time()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{time.time() - begin:7.1f}  {line.rstrip()}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"exit {process.returncode}, {time.time() - begin:.0f} s, peak memory {peak / 1e9:.1f} GB")
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
