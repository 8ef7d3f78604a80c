"""A finished Run without a model: rows, contract, curves, proofs and predictions of a made-up pair of systems."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tunesmith.contract import Contract
from tunesmith.example import Example, Message
from tunesmith.recipe import Recipe
from tunesmith.rows import write_rows
from tunesmith.run import Run

SPECIAL = [
    "<|pad|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
SITES = ["liver", "brain", "bone", "lung", "lymph nodes"]
DRUGS = ["osimertinib", "carboplatin and paclitaxel", "FOLFOX", "nivolumab + ipilimumab"]


def write_byte_tokenizer(folder: Path) -> Path:
    """262 ids: Llama-3's special tokens behind six, then every byte."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def reports(count: int, seed: int = 0, name: str = "row") -> list[Example]:
    """Extraction rows, two to a document, a third of them in the slice `values: unseen`."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        gold = {
            "site": rng.choice([None, *SITES]),
            "treatment": rng.choice(DRUGS),
            "stage": rng.choice(["II", "IV"]),
        }
        text = f"Report {name} {i}. "  # no row stands in two splits
        text += f"Stage {gold['stage']} disease. {gold['treatment']} given. Metastasis: {gold['site'] or 'none'} <b>&"
        turns = (Message("user", text), Message("assistant", json.dumps(gold), learned=True))
        kind = "unseen" if i % 3 == 0 else "seen"
        rows.append(
            Example(f"{name}-{i}", turns, f"document {i // 2}", {"values": kind}, f"{name}.jsonl:{i + 1}")
        )
    return rows


def guess(example: Example, rng: random.Random, skill: float) -> str:
    """An answer that is right with probability `skill`, field by field."""
    gold = json.loads(example.answer or "")
    if rng.random() > skill + 0.3:
        return rng.choice(["no idea", example.answer[:-4] if example.answer else "", "```json\n{}\n```"])
    pool: dict[str, Sequence[Any]] = {
        "site": [None, *SITES],
        "treatment": [*DRUGS, None],
        "stage": ["II", "III", "IV"],
    }
    return json.dumps(
        {k: v if rng.random() < skill else rng.choice(pool.get(k, [None])) for k, v in gold.items()}
    )


def write_predictions(path: Path, rows: Sequence[Example], answers: Sequence[str]) -> None:
    """A predictions file as answers.py writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "id": row.id,
            "prompt": row.prompt[-1].content,
            "answer": answer,
            "gold": row.answer,
            "stopped": not answer.startswith("no"),
            "tokens": len(answer),
            "logprob": -0.02 * len(answer),
        }
        for row, answer in zip(rows, answers, strict=True)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_curves(run: Run, steps: int = 120, every: int = 5) -> None:
    """metrics.jsonl and timing.jsonl of a run that overfits a little."""
    rng = random.Random(1)
    with run.metrics_file.open("w") as metrics, run.timing_file.open("w") as timing:
        for step in range(every, steps + 1, every):
            at = step / steps
            line = {
                "step": step,
                "loss": 0.3 + 1.6 * math.exp(-5 * at) + rng.gauss(0, 0.04),
                "validation_loss": 0.42 + 1.4 * math.exp(-5 * at) + 0.1 * at * at
                if step % (4 * every) == 0
                else None,
                "learning_rate": 2e-4 * min(1, at * 10) * (1 + math.cos(math.pi * at)) / 2,
                "gradient_norm": 0.4 + rng.random() / 4,
            }
            metrics.write(json.dumps(line) + "\n")
            timing.write(
                json.dumps({"step": step, "seconds": 1.0, "tokens_per_second": 900 + rng.random() * 40})
                + "\n"
            )


def recipe(**sections: Any) -> Recipe:
    """A recipe that evaluates the rows that `write_run` writes."""
    data = {"train": "train.jsonl", "validation": "validation.jsonl"} | sections.pop("data", {})
    return Recipe.model_validate({"name": "tiny", "model": {"base": "base"}, "data": data} | sections)


def write_run(
    folder: Path,
    train: Sequence[Example],
    *,
    test: Sequence[Example] = (),
    validation: Sequence[Example] = (),
) -> Run:
    """Rows and contract of a prepared run."""
    run = Run(folder)
    contract = Contract.make(write_byte_tokenizer(folder / "made"), template="llama3")
    contract.save(run.contract_folder, run.contract_folder / "tokenizer")
    for split, rows in (("train", train), ("validation", validation), ("test", test)):
        if rows:
            write_rows(run.data, split, [(row, contract.encode(row)) for row in rows])
    return run
