"""Seconds from the start of the process to the end of the first optimiser step: `tunesmith train` beside TRL + Liger.

    python benchmarks/start_gpu.py both --base DIR --work DIR [--rounds 3]   # ours, TRL, ours, TRL …; prints the table
    python benchmarks/start_gpu.py ours --base DIR --work DIR                # one start, one JSON line; or trl
    python benchmarks/start_gpu.py parts --base DIR --work DIR               # ours again, its parts timed from within

DIR and the rows are those of train_gpu.py (`make`, `prepare --kind full`; `both` prepares where it is not done yet).
Each start is a process of its own, on the same token ids, 16 rows of 2,048 tokens in the step, NF4, rank 16 on all
linears. `both` reads the weight files once beforehand, so they lie in the page cache for everybody. The first round
finds an empty Triton cache (a fresh machine), the later ones the cache that the first has left.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import train_gpu

BEGAN = float(os.environ.get("STARTED_AT") or time.time())  # set by whoever started this process


def started(way: str, work: Path) -> dict[str, str]:
    """The environment of a measured process: when it began, and kernels compiled for its way alone."""
    own = {"STARTED_AT": str(time.time()), "TRITON_CACHE_DIR": str((work / f"triton-{way}").absolute())}
    return os.environ | own | {"HF_HUB_OFFLINE": "1"}


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """The command line itself. What it says is timed as it comes; the step's end is the time in timing.jsonl."""
    command, run = own_command(arguments)
    begin = time.time()
    process = subprocess.Popen(
        command, env=started("ours", arguments.work), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = [[round(time.time() - begin, 2), line.strip()[:100]] for line in process.stderr]
    if process.wait():
        sys.exit("\n".join(str(line) for line in said))
    first = json.loads((run / "timing.jsonl").read_text().splitlines()[0])
    return {
        "way": "tunesmith",
        "first_step_at": round(first["time"] - begin, 2),
        "whole_command": round(time.time() - begin, 2),
        "said": said,
    }


def own_command(arguments: argparse.Namespace) -> tuple[list[str], Path]:
    """A fresh run folder with the prepared rows, and the command that trains its first step."""
    run = arguments.work / "start"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(arguments.work / "prepared-full", run)
    recipe = train_gpu.recipe(arguments, "start")
    recipe["train"] |= {"max_steps": 1, "log_every": 1}
    path = arguments.work / "start.yaml"
    path.write_text(json.dumps(recipe))
    words = ["train", str(path), "--runs-dir", str(arguments.work)]
    return [sys.executable, "-m", "tunesmith.cli", *words], run


def parts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours with a clock around its parts; each ends when the device has done its work."""
    command, _ = own_command(arguments)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as the command sets it
    found: list[list[Any]] = [["python and this script", 0.0, round(time.time() - BEGAN, 2)]]

    def timed(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def run(*rest: Any, **named: Any) -> Any:
            begin = time.time()
            try:
                return inner(*rest, **named)
            finally:
                if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
                    sys.modules["torch"].cuda.synchronize()
                found.append([name, round(begin - BEGAN, 2), round(time.time() - begin, 2)])

        return run

    def watch(owner: Any, *names: str) -> None:
        for name in names:
            setattr(owner, name, timed(f"{owner.__name__}.{name}", getattr(owner, name)))

    def imported() -> Any:
        import torch  # noqa: F401
        from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

        from tunesmith.verbs import run

        return run

    def stage_imported() -> Any:
        from tunesmith.train import train

        return train

    run = timed("import of torch, transformers and the verb", imported)()
    stage = timed("import of the stage", stage_imported)()
    timed("import of bitsandbytes", __import__)("bitsandbytes.functional")
    import torch

    timed("CUDA context", lambda: torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu"))()
    from tunesmith.engine import fused_warm
    from tunesmith.engine.fused import FusedEngine
    from tunesmith.model import load
    from tunesmith.train import build, proofs
    from tunesmith.train.loop import Loop
    from tunesmith.train.step import Stepper

    watch(run, "claim")
    watch(
        stage,
        "resolve",
        "_identity",
        "build_model",
        "choose_engine",
        "stored_plan",
        "Optimizer",
        "probe",
        "Log",
        "_finish",
    )
    watch(build, "load_model", "add_lora")
    watch(fused_warm, "small_model", "take_steps", "_compile")
    watch(load, "empty_model", "_fill")
    watch(FusedEngine, "_require_equal_layers")
    watch(proofs, "packed_equals_unpacked", "accumulation_is_exact")
    watch(Stepper, "step")
    watch(Loop, "_write_line", "_save")
    from tunesmith.cli import main

    if code := main(command[3:]):
        sys.exit(code)
    line = next(one for one in found if one[0] == "Loop._write_line")
    for name, at, seconds in sorted(found, key=lambda one: (one[1], -one[2])):
        print(f"{at:7.2f} s  + {seconds:6.2f} s  {name}")
    return {"way": "tunesmith, timed within", "first_step_at": round(line[1] + line[2], 2), "parts": found}


def trl(arguments: argparse.Namespace) -> dict[str, Any]:
    """SFTTrainer as train_gpu.py has it, up to the end of its first step."""
    marks: dict[str, float] = {"python and this script": round(time.time() - BEGAN, 2)}

    def mark(name: str) -> None:
        marks[name] = round(time.time() - BEGAN, 2)

    import torch
    from gpu_peers import Settings, _dataset, _trl
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    mark("imports")
    settings = Settings(
        way="trl",
        base=arguments.base,
        prepared=arguments.work / "prepared-full" / "data",
        output=arguments.work / "trl-start",
        quantize=arguments.quantize,
        recompute="default",
        packing=False,
        dropout=0.0,
        targets=train_gpu.LINEARS["all"],
        rows=4,
        accumulation=4,
        steps=1,
        warm_up=0,
        memory=0.0,
    )
    model, tokenizer, extra = _trl(settings)
    torch.cuda.synchronize()
    mark("model loaded")

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            torch.cuda.synchronize()
            mark("first step")

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(settings.output),
            per_device_train_batch_size=settings.rows,
            gradient_accumulation_steps=settings.accumulation,
            max_steps=1,
            learning_rate=2e-4,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            bf16=True,
            max_length=2048,
            optim="adamw_torch_fused",
            dataset_kwargs={"skip_prepare_dataset": True},
            dataset_num_proc=1,
            **extra.pop("config"),
        ),
        train_dataset=_dataset(settings),
        processing_class=tokenizer,
        callbacks=[Clock()],
        **extra,
    )
    mark("trainer ready")
    trainer.train()
    return {"way": "TRL + Liger", "first_step_at": marks["first step"], "marks": marks}


def both(arguments: argparse.Namespace) -> None:
    """The pairs, then the parts of ours, then the table."""
    if not (arguments.work / "prepared-full" / "data").exists():
        train_gpu.prepare(arguments)
    (arguments.work / "starts.jsonl").unlink(missing_ok=True)
    for way in ("ours", "trl"):
        shutil.rmtree(arguments.work / f"triton-{way}", ignore_errors=True)
    for path in sorted(arguments.base.glob("*.safetensors")):
        with path.open("rb") as file:
            while file.read(1 << 26):
                pass
    for _ in range(arguments.rounds):
        for way in ("ours", "trl"):
            one(way, arguments)
    one("parts", arguments)
    table(arguments.work)


def one(way: str, arguments: argparse.Namespace) -> None:
    words = [str(Path(__file__).resolve()), way, "--base", str(arguments.base), "--work", str(arguments.work)]
    env = started("ours" if way == "parts" else way, arguments.work)
    subprocess.run([sys.executable, *words], env=env, check=True)


def table(work: Path) -> None:
    results = [json.loads(line) for line in (work / "starts.jsonl").read_text().splitlines()]
    for way in dict.fromkeys(result["way"] for result in results):
        own = [result for result in results if result["way"] == way]
        each = " · ".join(f"{result['first_step_at']:.1f}" for result in own)
        print(f"{way:26} first step done after {each} s (the first: nothing compiled yet)")
        for key in ("marks", "said"):
            if key in own[-1]:
                print(f"  {'':24} {own[-1][key]}")


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("both", "ours", "trl", "parts", "table"))
    parser.add_argument("--base", type=Path)
    parser.add_argument("--work", type=Path, default=Path("bench"))
    parser.add_argument("--rounds", type=int, default=2)
    own = parser.parse_args()
    sys.argv = ["train_gpu.py", "ours", "--base", str(own.base), "--work", str(own.work), "--kind", "full"]
    found = train_gpu.arguments_of()  # its defaults for everything else
    vars(found).update(vars(own))
    return found


def main() -> None:
    arguments = arguments_of()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.what == "both":
        return both(arguments)
    if arguments.what == "table":
        return table(arguments.work)
    result = {"ours": ours, "trl": trl, "parts": parts}[arguments.what](arguments)
    print("RESULT", json.dumps(result), flush=True)
    with (arguments.work / "starts.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    return None


if __name__ == "__main__":
    main()
