"""F16 GGUF of an 8B shape from bf16 shards, beside a plain copy of the same bytes, in one run.

    python benchmarks/gguf_speed.py [--folder DIR] [--layers 32] [--kind F16] [--rounds 3]

Random shards of Llama-3.1-8B's shape (16 GB at 32 layers) are made in DIR and deleted afterwards; twice that must be
free. Rounds take turns: export and copy (`shutil.copyfile`, then fsync), the other one first in every second round. The
export runs in a process of its own, whose peak memory is measured. Busy disks vary by half: look at several rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def make_model(folder: Path, layers: int) -> None:
    """Shards of random bf16 values, and the starter's tokenizer: the vocabulary's rest is filled up."""
    import torch

    from tunesmith import starter
    from tunesmith.contract import Contract
    from tunesmith.export.gguf.architecture import read_architecture
    from tunesmith.export.gguf.tensors import stored_shapes
    from tunesmith.model.shards import Entry, write_shards

    config = SHAPE | {"num_hidden_layers": layers}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = stored_shapes(read_architecture(config, folder))
    noise = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()

    def make(name: str) -> torch.Tensor:
        count = int(torch.Size(shapes[name]).numel())
        return noise.repeat(-(-count // len(noise)))[:count].reshape(shapes[name])

    write_shards(folder, [Entry(name, torch.bfloat16, shape) for name, shape in shapes.items()], make)
    Contract.make(starter.base_folder()).save(folder)


def export_once(folder: Path, out: Path, kind: str) -> None:
    """In the child: prints seconds, and peak memory before and after in bytes."""
    import torch  # noqa: F401

    from tunesmith.contract import Contract
    from tunesmith.export.gguf.write import write_gguf

    contract = Contract.load(folder)
    before, used = peak_memory(), time.process_time()
    begin = time.perf_counter()
    write_gguf(folder, out, kind, contract)
    seconds = time.perf_counter() - begin
    used = time.process_time() - used
    print(json.dumps({"seconds": seconds, "processor": used, "before": before, "peak": peak_memory()}))


def peak_memory() -> int:
    """Bytes; of this process alone (getrusage would begin with the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def copy_once(shards: Sequence[Path], folder: Path) -> tuple[float, float]:
    """Seconds for the same shards, each synced, and of the processor."""
    begin, used = time.perf_counter(), time.process_time()
    for shard in shards:
        shutil.copyfile(shard, folder / shard.name)
        with (folder / shard.name).open("rb+") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - begin, time.process_time() - used


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--folder", type=Path, default=None, help="where the shards are made (default: a temporary one)"
    )
    options.add_argument("--layers", type=int, default=32)
    options.add_argument("--kind", default="F16", choices=["F32", "F16", "BF16", "Q8_0"])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        export_once(*given.child, given.kind)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        run(Path(place), given.layers, given.kind, given.rounds)


def run(place: Path, layers: int, kind: str, rounds: int) -> None:
    """Prints a line a round, and the medians."""
    model, out = place / "model", place / "out"
    make_model(model, layers)
    shards = sorted(model.glob("*.safetensors"))
    size = sum(shard.stat().st_size for shard in shards)
    largest = 128256 * 4096 * 2
    print(f"{layers} layers, {size / 1e9:.2f} GB of bf16 in {len(shards)} shards → {kind}")
    exports, copies = [], []
    command = [sys.executable, __file__, "--kind", kind, "--child", str(model), str(out / "m.gguf")]
    for number in range(rounds):
        told, copied = {}, (0.0, 0.0)
        for turn in ("export", "copy") if number % 2 == 0 else ("copy", "export"):
            out.mkdir()
            if turn == "export":
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                told = json.loads(done.stdout.splitlines()[-1])
            else:
                copied = copy_once(shards, out)
            shutil.rmtree(out)
        exports.append(told["seconds"])
        copies.append(copied[0])
        print(
            f"round {number}: export {told['seconds']:.2f} s, copy {copied[0]:.2f} s: "
            f"{copied[0] / told['seconds']:.2f} × a copy's speed; processor {told['processor']:.2f} and "
            f"{copied[1]:.2f} s; peak memory {told['peak'] / 1e9:.2f} GB (before it {told['before'] / 1e9:.2f}; "
            f"limit {(2 * largest + 1e9) / 1e9:.2f})",
            flush=True,
        )
    export, copied = statistics.median(exports), statistics.median(copies)
    print(f"median: export {export:.2f} s, copy {copied:.2f} s: {copied / export:.2f} × a plain copy's speed")


if __name__ == "__main__":
    main()
