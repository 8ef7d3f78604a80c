"""Training speed and memory on a GPU: `tunesmith train` itself beside TRL + Liger, on the same rows.

    python benchmarks/train_gpu.py make --base DIR --tokenizer DIR             # Llama-3.1-8B shape, random weights
    python benchmarks/train_gpu.py prepare --base DIR --rows DIR --work DIR    # token ids once, for both
    python benchmarks/train_gpu.py ours --base DIR --rows DIR --work DIR       # one measurement, one JSON line
    python benchmarks/train_gpu.py trl --base DIR --work DIR                   # likewise; needs trl, liger-kernel, peft
    python benchmarks/train_gpu.py table --work DIR

Each measurement is a process of its own and appends to WORK/results.jsonl, so a series can be stopped and gone on
with. Call them A B A B. Random weights do for speed; they say nothing about quality.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parents[1] / "recipes" / "cancer-extraction.yaml"
LINEARS = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def make(base: Path, tokenizer: Path) -> None:
    """A folder with the shape of Llama 3.1 8B, weights drawn from N(0, 0.02)."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        bos_token_id=128000,
        eos_token_id=128001,
    )
    torch.set_default_dtype(torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0) if parameter.ndim == 1 else parameter.normal_(0, 0.02)
    model.config.architectures, model.config.dtype = ["LlamaForCausalLM"], "bfloat16"
    model.save_pretrained(base, max_shard_size="4GB")
    for file in tokenizer.iterdir():
        shutil.copy(file, base / file.name)


def settings(arguments: argparse.Namespace, name: str) -> list[str]:
    """The recipe's own settings, with this base and these rows."""
    pairs = {
        "name": name,
        "model.base": arguments.base,
        "data.train": f"{arguments.rows}/train.jsonl",
        "data.validation": f"{arguments.rows}/validation_a.jsonl",
        "train.max_steps": arguments.steps,
        "train.evaluate_every": 10_000,
        "train.save_every": max(1, arguments.steps // 2),
        "train.micro_batch": arguments.micro_batch,
        "tune.target_modules": f"[{', '.join(LINEARS[arguments.targets])}]",
        "tune.dropout": arguments.dropout,
        "train.engine": arguments.engine,
    }
    if arguments.memory:
        pairs["train.memory"] = float(arguments.memory)
    return [word for key, value in pairs.items() for word in ("--set", f"{key}={value}")]


def tunesmith(verb: str, arguments: argparse.Namespace, name: str) -> float:
    """Runs the command line; returns its seconds."""
    begin = time.time()
    command = [sys.executable, "-m", "tunesmith.cli", verb, str(RECIPE), "--runs-dir", str(arguments.work)]
    subprocess.run([*command, *settings(arguments, name)], check=True)
    return time.time() - begin


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """`tunesmith train` as a user calls it: loading, loader, logging and a checkpoint included."""
    import shutil

    run = arguments.work / "ours"
    shutil.rmtree(run, ignore_errors=True)
    seconds = tunesmith("train", arguments, "ours")
    timing = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = sum(line["seconds"] for line in timing)
    later = [line["tokens_per_second"] for line in timing[1:]]
    return {
        "way": f"tunesmith ({arguments.engine})",
        "tokens_per_second": round(metrics[-1]["tokens"] / trained),
        "median_after_warm_up": round(statistics.median(later)) if later else None,
        "peak_gib": timing[-1]["memory_gib"],
        "steps": arguments.steps,
        "whole_command_seconds": round(seconds, 1),
        "losses": [line["loss"] for line in metrics[:3]],
        "plan": json.loads((run / "data" / "plan.json").read_text())["plan"]["note"],
    }


def trl(arguments: argparse.Namespace) -> dict[str, Any]:
    """TRL's SFTTrainer with Liger and its defaults (recompute on), 4 rows × 4, on the very ids that ours trains on."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tunesmith.rows import Rows
    from tunesmith.train.order import Order  # the same rows in the same steps

    if arguments.memory:
        share = float(arguments.memory) * 2**30 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share)
    rows = Rows.open(arguments.work / "prepared" / "data", "train")
    steps, warm = arguments.peer_steps + arguments.warm_up, arguments.warm_up
    order = Order(len(rows), batch=16, seed=0, epochs=100, max_steps=steps)
    numbers = [int(n) for step in range(1, steps + 1) for n in order.numbers(step)]
    data = Dataset.from_list(
        [
            {
                "input_ids": rows.ids(n).tolist(),
                "labels": [
                    int(i) if on else -100 for i, on in zip(rows.ids(n), rows.learned(n), strict=True)
                ],
            }
            for n in numbers
        ]
    )
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    begin = time.time()
    model = AutoModelForCausalLM.from_pretrained(
        arguments.base,
        quantization_config=quantized,
        dtype=torch.bfloat16,
        attn_implementation="sdpa",
        device_map={"": 0},
    )
    loaded = time.time() - begin
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    tokenizer.pad_token = "<|finetune_right_pad_id|>"
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            torch.cuda.synchronize()
            self.begin = time.time()

        def on_step_end(self, *_: object, **__: object) -> None:
            torch.cuda.synchronize()
            seconds.append(time.time() - self.begin)

    losses: list[float] = []

    class Losses(TrainerCallback):
        def on_log(self, *_: object, logs: dict[str, float] | None = None, **__: object) -> None:
            if logs and "loss" in logs:
                losses.append(round(float(logs["loss"]), 4))

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(arguments.work / "trl"),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            max_steps=steps,
            learning_rate=2e-4,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            bf16=True,
            max_length=2048,
            use_liger_kernel=True,
            optim="adamw_torch_fused",
            dataset_kwargs={"skip_prepare_dataset": True},
            shuffle_dataset=False,
        ),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16,
            lora_alpha=32,
            lora_dropout=arguments.dropout,
            bias="none",
            task_type="CAUSAL_LM",
            target_modules=LINEARS[arguments.targets],
        ),
        callbacks=[Clock(), Losses()],
    )
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    lengths = rows.lengths
    # the trainer draws its own order, so the mean row stands for each: real tokens, no padding
    per_step = float(lengths[numbers].sum()) / steps
    timed = seconds[warm:]
    return {
        "way": "TRL + Liger",
        "tokens_per_second": round(per_step * len(timed) / sum(timed)),
        "median_after_warm_up": round(per_step / statistics.median(timed)),
        "peak_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        "steps": len(timed),
        "load_seconds": round(loaded, 1),
        "losses": losses[:3],
    }


def table(work: Path) -> None:
    """Medians by way and setting, and the ratio to the peer under the same setting."""
    results = [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]
    for setting in sorted({one["setting"] for one in results}):
        group = [one for one in results if one["setting"] == setting]
        print(f"\n{setting}")
        speeds: dict[str, float] = {}
        for way in dict.fromkeys(one["way"] for one in group):
            own = [one for one in group if one["way"] == way]
            speeds[way] = statistics.median(one["tokens_per_second"] for one in own)
            each = ", ".join(str(one["tokens_per_second"]) for one in own)
            peak = max(one["peak_gib"] for one in own)
            print(
                f"  {way:24} {speeds[way]:8.0f} tokens/s  ({each})  peak {peak} GiB  {own[-1].get('plan', '')}"
            )
        peers = [speed for way, speed in speeds.items() if not way.startswith("tunesmith")]
        for way, speed in speeds.items():
            if way.startswith("tunesmith") and peers:
                print(f"  {way}: {speed / max(peers):.2f} x the peer")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "prepare", "ours", "trl", "table"))
    parser.add_argument("--base", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--work", type=Path, default=Path("bench"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--peer-steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=6)
    parser.add_argument("--memory", type=float, default=22.0, help="GiB cap for both; 0: none")
    parser.add_argument("--micro-batch", default="auto", help="ours; the peer takes 4 rows x 4")
    parser.add_argument("--targets", choices=tuple(LINEARS), default="attention")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--engine", default="reference")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.what == "make":
        make(arguments.base, arguments.tokenizer)
    elif arguments.what == "prepare":
        tunesmith("prepare", arguments, "prepared")
    elif arguments.what == "table":
        table(arguments.work)
    else:
        result = {"ours": ours, "trl": trl}[arguments.what](arguments)
        result["setting"] = (
            f"8B shape, NF4, {arguments.targets} linears, dropout {arguments.dropout}, {arguments.memory} GiB"
        )
        print("RESULT", json.dumps(result), flush=True)
        with (arguments.work / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
