"""What train.fp8 costs in quality: validation losses of the same LoRA runs in fp8 and in bf16, several seeds of each.

    python benchmarks/fp8_quality.py prepare --data DIR --work DIR     # rows and a tokenizer, 11 MB; DIR has medquad, …
    python benchmarks/fp8_quality.py run --work DIR --gpus 4           # trains a 38 M Llama on medical text, then tunes
    python benchmarks/fp8_quality.py table --work DIR

A base with random weights would say nothing, so one is trained first: questions and answers of MedQuAD and articles of
BC5CDR, all weights, by `tunesmith train`. Then an adapter learns to extract from the reports of cancer_ie, with seeds
1 to N (order of rows, dropout, first adapter), in bf16 and in fp8. Validation losses are computed with the exact
weights in both. Each run is a process of its own on one GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 8192,
}  # fmt: skip
TINY = SHAPE | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WAYS = ("bf16", "fp8")
STUDENT = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
}  # 95 %, by degrees of freedom


def prepare(data: Path, work: Path) -> None:
    """Rows of both tasks and a byte-level BPE of their words."""
    work.mkdir(parents=True, exist_ok=True)
    texts = []
    for line in (data / "medquad" / "medquad_qa.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        texts.append(f"{row['question']}\n{row['answer']}")
    for line in (data / "bc5cdr" / "CDR_TrainingSet.PubTator.txt").read_text("utf-8").splitlines():
        number, kind, text = [*line.split("|", 2), "", ""][:3]
        if kind == "t":
            texts.append(text)
        elif kind == "a" and number.isdigit():
            texts[-1] += f"\n{text}"
    with (work / "text.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    for name, source in (("train", "train"), ("validation", "validation_a")):
        shutil.copyfile(data / "cancer_ie" / f"{source}.jsonl", work / f"{name}.jsonl")
    seen = [*texts, (work / "train.jsonl").read_text("utf-8")]
    make_tokenizer(work / "tokenizer", seen, SHAPE["vocab_size"])
    size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    print(f"{len(texts)} texts; {size / 1e6:.1f} MB in {work}")


def make_tokenizer(folder: Path, texts: list[str], vocabulary: int) -> None:
    """A byte-level BPE of the texts' words, with the plain template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    found.chat_template = TEMPLATE
    found.save_pretrained(folder)


def make_base(work: Path, shape: dict[str, int]) -> None:
    """A Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        max_position_embeddings=4096,
        initializer_range=0.02,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).bfloat16()
    print(f"base: {model.num_parameters() / 1e6:.1f} M parameters")
    model.save_pretrained(work / "random")
    for file in (work / "tokenizer").iterdir():
        shutil.copy(file, work / "random" / file.name)


def recipe(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """`base`, or `seed-way`. Checks of the data that would end a run are off: what is in these rows is known."""
    work = arguments.work
    checks = dict.fromkeys(("exact_leak", "empty_answer", "unparsable", "schema", "phi"), "ignore")
    if name == "base":
        data = {"train": f"{work}/text.jsonl", "format": "text", "split": {"validation": 0.02}}
        train = {"batch": 32, "max_steps": arguments.base_steps, "learning_rate": 1e-3, "weight_decay": 0.01}
        tune: dict[str, Any] = {"method": "full"}
        base, seed, epochs = f"{work}/random", 0, 100
    else:
        number, _, way = name.partition("-")
        seed = int(number)
        data = {"train": f"{work}/train.jsonl", "validation": f"{work}/validation.jsonl"}
        train = {"batch": 16, "max_steps": arguments.steps, "learning_rate": 5e-4, "engine": "fused"}
        train |= {"fp8": way == "fp8"}
        tune = {"rank": 16, "alpha": 32, "dropout": 0.05}
        base, epochs = f"{work}/runs/base/adapter", 100
    often = {"evaluate_every": max(1, train["max_steps"] // 4), "save_every": train["max_steps"]}
    return {
        "name": name,
        "seed": seed,
        "model": {"base": base, "dtype": "bfloat16"},
        "data": data | {"max_length": 2048, "overlong": "drop", "checks": checks},
        "tune": tune,
        "train": train | often | {"epochs": epochs, "log_every": max(1, train["max_steps"] // 20)},
    }


def tunesmith(verb: str, arguments: argparse.Namespace, name: str, gpu: int = 0) -> None:
    """One verb in a process of its own, which sees one GPU; its words go to a file."""
    path = arguments.work / f"{name}.yaml"
    path.write_text(json.dumps(recipe(arguments, name)))  # JSON is YAML
    command = [
        sys.executable,
        "-m",
        "tunesmith.cli",
        verb,
        str(path),
        "--runs-dir",
        str(arguments.work / "runs"),
    ]
    begin = time.time()
    with (arguments.work / f"{name}.log").open("a") as log:
        done = subprocess.run(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
            env={"CUDA_VISIBLE_DEVICES": str(gpu)} | os.environ
            if arguments.gpus == 1
            else os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)},
        )
    print(f"{verb} {name}: {time.time() - begin:.0f} s, rc {done.returncode}", flush=True)
    if done.returncode:
        sys.exit((arguments.work / f"{name}.log").read_text()[-3000:])


def run(arguments: argparse.Namespace) -> None:
    """The base, then all runs, `--each` a GPU at a time."""
    work = arguments.work
    if not (work / "runs" / "base" / "adapter").exists():
        make_base(work, TINY if arguments.tiny else SHAPE)
        tunesmith("prepare", arguments, "base")
        tunesmith("train", arguments, "base")
    jobs = [f"{seed}-{way}" for seed in range(1, arguments.seeds + 1) for way in WAYS]
    tunesmith("prepare", arguments, jobs[0])
    for name in jobs[1:]:
        shutil.copytree(work / "runs" / jobs[0], work / "runs" / name, dirs_exist_ok=True)
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for gpu in list(range(arguments.gpus)) * arguments.each:
        free.put(gpu)

    def one(name: str) -> None:
        gpu = free.get()
        try:
            tunesmith("train", arguments, name, gpu)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(arguments.gpus * arguments.each) as pool:
        list(pool.map(one, jobs))
    table(arguments)


def validation(work: Path, name: str) -> list[float]:
    """Validation losses of a run in the order of its steps."""
    lines = (work / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [
        row["validation_loss"] for row in map(json.loads, lines) if row.get("validation_loss") is not None
    ]


def table(arguments: argparse.Namespace) -> None:
    """Losses by seed, the spread of bf16's, and the mean difference with its 95 % interval, paired by seed."""
    work, seeds = arguments.work, range(1, arguments.seeds + 1)
    base = validation(work, "base")
    print("base, validation loss: " + " ".join(f"{loss:.3f}" for loss in base))
    found = {way: [validation(work, f"{seed}-{way}") for seed in seeds] for way in WAYS}
    for seed, bf16, fp8 in zip(seeds, found["bf16"], found["fp8"], strict=True):
        series = " · ".join(f"{a:.5f} {b:.5f}" for a, b in zip(bf16, fp8, strict=True))
        print(
            f"seed {seed}: bf16 {bf16[-1]:.5f}  fp8 {fp8[-1]:.5f}  difference {fp8[-1] - bf16[-1]:+.5f}   ({series})"
        )
    last = {way: [losses[-1] for losses in found[way]] for way in WAYS}
    apart = [b - a for a, b in zip(last["bf16"], last["fp8"], strict=True)]
    mean, spread = statistics.mean(apart), statistics.stdev(last["bf16"])
    half = STUDENT[len(apart) - 1] * statistics.stdev(apart) / math.sqrt(len(apart))
    verdict = "within" if abs(mean) <= spread else "NOT within"
    print(
        f"RESULT fp8 - bf16: {mean:+.5f} nats a token (95 % interval {mean - half:+.5f} to {mean + half:+.5f}, paired, "
        f"{len(apart)} seeds); bf16's own standard deviation over seeds {spread:.5f}: {verdict} seed noise"
    )
    for seed in seeds:
        proofs = json.loads((work / "runs" / f"{seed}-fp8" / "proofs.json").read_text())["proofs"]
        said = [f"{p['name']} {p['figure']:.4g} (limit {p['limit']})" for p in proofs if "fp8" in p["name"]]
        print(f"seed {seed}: " + "; ".join(said))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("prepare", "run", "table"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--each", type=int, default=1, help="runs that share a GPU: the model is small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--base-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--tiny", action="store_true", help="a model for trying this out on a CPU")
    arguments = parser.parse_args()
    arguments.work = arguments.work.resolve()
    if arguments.what == "prepare":
        if arguments.data is None:
            parser.error("prepare needs --data, the folder with medquad, bc5cdr and cancer_ie")
        return prepare(arguments.data, arguments.work)
    return run(arguments) if arguments.what == "run" else table(arguments)


if __name__ == "__main__":
    main()
