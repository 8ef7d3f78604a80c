"""How fast rows become token ids, and in how much memory: ours beside TRL's own preparation.

    python benchmarks/prepare.py make FOLDER ROWS [WORDS]    rows of some 130 words, a tokenizer's folder beside them
    python benchmarks/prepare.py ours FOLDER             `tunesmith prepare`, then again from the cache
    python benchmarks/prepare.py trl FOLDER              TRL's SFTTrainer: tokenise and pack by datasets.map
    python benchmarks/prepare.py pair FOLDER [TIMES]     ours and TRL's in turn

Ours does more: it also splits, looks for near-duplicates, runs every data check and proves every row. TRL gets rows
that are conversations already. Both use the same tokenizer, template and number of processes. Memory is the most that
the process and its children held together (proportional set size), read from /proc once a second.
TRL runs in the Python that TRL_PYTHON names (an environment with trl and datasets).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

PROCESSES = 2
LENGTH = 2048


def make(folder: Path, rows: int, words_a_row: float = 130) -> None:
    """rows.jsonl (instruction/input/output), conversations.jsonl (the same for TRL) and base/."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from llama3_referee import write_llama3_tokenizer

    base = folder / "base"
    base.mkdir(parents=True, exist_ok=True)
    write_llama3_tokenizer(base)
    _write_model(base)
    vocabulary = json.loads((base / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    begin = "\u0120"  # how byte-level tokenizers write the space before a word
    words = sorted(
        word[1:]
        for word in vocabulary
        if word[0] == begin and len(word) > 3 and word[1:].isascii() and word[1:].isalpha()
    )
    draw = random.Random(0)
    draw.shuffle(words)
    weights = [1 / (rank + 2.7) for rank in range(len(words))]  # Zipf and Mandelbrot: as words are in texts
    texts = draw.choices(words, weights, k=4_000_000)
    with (folder / "rows.jsonl").open("w") as ours, (folder / "conversations.jsonl").open("w") as theirs:
        for row in range(rows):

            def some(low: float, sigma: float) -> str:
                length = max(3, min(400, int(draw.lognormvariate(low, sigma) * words_a_row / 130)))
                start = draw.randrange(len(texts) - length)
                chosen = texts[start : start + length]
                return (
                    " ".join(word + ("." if draw.random() < 0.08 else "") for word in chosen).capitalize()
                    + "."
                )

            instruction, context, answer = some(2.5, 0.4), some(3.6, 0.7), some(4.2, 0.6)
            ours.write(
                json.dumps({"id": f"r{row}", "instruction": instruction, "input": context, "output": answer})
                + "\n"
            )
            prompt = [{"role": "user", "content": f"{instruction}\n\n{context}"}]
            theirs.write(
                json.dumps({"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]})
                + "\n"
            )


def _write_model(base: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(
        vocab_size=128256, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(small).save_pretrained(base)


def ours(folder: Path, fresh: bool = True) -> dict[str, float]:
    """`tunesmith prepare` in a process of its own."""
    runs = folder / "runs"
    if fresh:
        shutil.rmtree(runs, ignore_errors=True)
    else:
        shutil.rmtree(runs / "speed", ignore_errors=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"name: speed\nmodel: {{base: {folder / 'base'}, template: llama3}}\n"
        f"data: {{train: {folder / 'rows.jsonl'}, split: {{validation: 0.05, test: 0.05}}, max_length: {LENGTH}}}\n"
    )
    command = [sys.executable, "-m", "tunesmith.cli", "prepare", str(recipe), "--runs-dir", str(runs)]
    return _measured(command, folder / "ours.log")


def theirs(folder: Path) -> dict[str, float]:
    """TRL's preparation in a process of its own; it reports the seconds of load_dataset and of the preparation."""
    shutil.rmtree(folder / "hf", ignore_errors=True)
    python = os.environ.get("TRL_PYTHON", sys.executable)
    command = [python, str(Path(__file__).resolve()), "trl-worker", str(folder)]
    return _measured(command, folder / "trl.log", {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"})


def trl_worker(folder: Path) -> None:
    """SFTTrainer is built whole, as a user builds it: its constructor prepares the rows."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tunesmith.templates import NAMED

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "base")
    tokenizer.chat_template = NAMED["llama3"]
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    begin = time.monotonic()
    rows = load_dataset("json", data_files=str(folder / "conversations.jsonl"), split="train")
    loaded = time.monotonic()
    settings = SFTConfig(
        str(folder / "trl-out"), packing=True, max_length=LENGTH, dataset_num_proc=PROCESSES, use_cpu=True,
        bf16=False, report_to=[], completion_only_loss=True,
    )  # fmt: skip
    SFTTrainer(model, settings, train_dataset=rows, processing_class=tokenizer)
    done = time.monotonic()
    print(json.dumps({"load": loaded - begin, "prepare": done - loaded}))


def _measured(command: list[str], log: Path, more: dict[str, str] | None = None) -> dict[str, float]:
    with log.open("w") as out:
        begin = time.monotonic()
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | (more or {})
        )
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
        watcher.start()
        code = process.wait()
        seconds = time.monotonic() - begin
    if code:
        sys.exit(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-3000:]}")
    last = log.read_text().strip().splitlines()[-1]
    inner = json.loads(last) if last.startswith('{"load"') else {}
    return {"seconds": round(seconds, 1), "peak_gib": round(peak[0] / 2**20, 3)} | inner


def _watch(root: int, peak: list[int]) -> None:
    while True:
        peak[0] = max(peak[0], sum(_pss(pid) for pid in _tree(root)))
        time.sleep(1)


def _tree(root: int) -> list[int]:
    found, at = [root], 0
    while at < len(found):
        try:
            tasks = Path(f"/proc/{found[at]}/task")
            for task in tasks.iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            pass
        at += 1
    return found


def _pss(pid: int) -> int:
    """KiB that a process holds, shared pages counted by share, files' pages left out."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(
        int(line.split()[1]) for line in text.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
    )


def _rows(folder: Path) -> int:
    with (folder / "rows.jsonl").open("rb") as file:
        return sum(1 for _ in file)


def main() -> None:
    """Parses the command line."""
    verb, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if verb == "make":
        make(folder, int(sys.argv[3]), *map(float, sys.argv[4:5]))
    elif verb == "trl-worker":
        trl_worker(folder)
    elif verb in ("ours", "trl", "pair"):
        rows = _rows(folder)
        for _ in range(int(sys.argv[3]) if len(sys.argv) > 3 else 1):
            for who in ("ours", "trl") if verb == "pair" else (verb,):
                figures = ours(folder) if who == "ours" else theirs(folder)
                seconds = figures.get("prepare", figures["seconds"])
                print(
                    json.dumps(
                        {"who": who, "rows": rows, "rows_per_second": round(rows / seconds)} | figures
                    ),
                    flush=True,
                )
                if who == "ours":
                    print(
                        json.dumps({"who": "ours, from the cache", "rows": rows} | ours(folder, fresh=False)),
                        flush=True,
                    )
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
