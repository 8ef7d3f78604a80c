"""A small Llama that half knows a mission: to look at error classes and intervals of real mistakes.

    python benchmarks/half_knowing.py prepare --data DIR --work DIR     # rows, tokenizer, random base; DIR has bc5cdr
    python benchmarks/half_knowing.py base --work DIR --steps 6000      # all weights, by tunesmith
    python benchmarks/half_knowing.py tune --work DIR                   # the mission on that base, scored on dev

The base, made from scratch (4 M parameters; 22 M with --shape large, for a card), sees the BC5CDR train set alone: its
sentences put together to new articles, in every fifth of which each entity is renamed by invented words, so that it
learns to copy what stands where an entity stands, and not only the 500 articles by heart. It is a laboratory model:
what it scores says nothing of a real one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fp8_quality import make_tokenizer

SHAPES = {
    "large": {
        "hidden_size": 384,
        "intermediate_size": 1152,
        "num_hidden_layers": 10,
        "num_attention_heads": 6,
    },
    "small": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 3},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1},
}
VOCABULARY = 12_288  # most words are one token, so that to copy a name is to copy a token or two
ARTICLES = 24_000
_END = re.compile(r"(?<=[.?!]) (?=[A-Z0-9])")


def prepare(data: Path, work: Path, articles: int, shape: str) -> None:
    """Made-up articles as train.jsonl and validation.jsonl, the tokenizer, the random base; the corpus beside them."""
    from tunesmith.data.processors.ready import annotated_abstract

    work.mkdir(parents=True, exist_ok=True)
    for name in ("Training", "Development"):
        shutil.copy(data / "bc5cdr" / f"CDR_{name}Set.PubTator.txt", work / f"{name.lower()}.PubTator.txt")
    documents = list(_documents(work / "training.PubTator.txt"))
    draw = random.Random(7)
    sentences = [one for document in documents for one in _sentences(document)]
    with (work / "train.jsonl").open("w") as train, (work / "validation.jsonl").open("w") as validation:
        for number in range(articles):
            row = (
                documents[draw.randrange(len(documents))] if draw.random() < 0.15 else _mixed(sentences, draw)
            )
            if draw.random() < 0.2:
                row = _renamed(row, draw)
            for example in annotated_abstract(row | {"pmid": f"made-{number}"}):
                turns = [{"role": m.role, "content": m.content} for m in example.messages]
                file = validation if number % 200 == 0 else train
                file.write(json.dumps({"messages": turns}) + "\n")
    make_tokenizer(
        work / "untrained", [f"{row['title']}\n{row['abstract']}" for row in documents], VOCABULARY
    )
    _untrained(work / "untrained", SHAPES[shape])


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    from tunesmith.data.read.pubtator import read_pubtator

    with path.open("rb") as file:
        for batch in read_pubtator(file, path.name, 64):
            for _, row in batch.rows():
                if isinstance(row, dict):
                    yield row


def _sentences(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Sentences with the mentions that lie wholly in them, placed from the sentence's own beginning."""
    whole = f"{document['title']}\n{document['abstract']}"
    edges = [0, *(found.end() for found in re.finditer(r"\n|(?<=[.?!]) (?=[A-Z0-9])", whole)), len(whole)]
    made = []
    for begin, end in itertools.pairwise(edges):
        inside = [m for m in document["mentions"] if begin <= m["start"] and m["end"] <= end]
        text = whole[begin:end].rstrip()
        moved = [m | {"start": m["start"] - begin, "end": m["end"] - begin} for m in inside]
        if len(text) > 20 and all(m["end"] <= len(text) for m in moved):
            made.append({"text": text, "mentions": moved})
    return made


def _mixed(sentences: list[dict[str, Any]], draw: random.Random) -> dict[str, Any]:
    """An article of sentences from anywhere; who causes what is no longer known."""
    chosen = [draw.choice(sentences) for _ in range(draw.randint(1, 5))]
    text, mentions = "", []
    for place, one in enumerate(chosen):
        joint = "" if place == 0 else "\n" if place == 1 else " "
        begin = len(text) + len(joint)
        text += joint + one["text"]
        mentions += [m | {"start": m["start"] + begin, "end": m["end"] + begin} for m in one["mentions"]]
    title, _, abstract = text.partition("\n")
    return {"title": title, "abstract": abstract, "mentions": mentions, "relations": []}


def _renamed(row: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Every surface form under an invented word, in the text and in the mentions alike."""
    whole = f"{row['title']}\n{row['abstract']}"
    forms: dict[str, str] = {}
    text, mentions, at = "", [], 0
    for mention in sorted(row["mentions"], key=lambda m: (m["start"], -m["end"])):
        if mention["start"] < at:
            continue  # inside another one
        word = forms.setdefault(mention["text"].casefold(), _word(draw))
        text += whole[at : mention["start"]]
        mentions.append(mention | {"start": len(text), "end": len(text) + len(word), "text": word})
        text, at = text + word, mention["end"]
    title, _, abstract = (text + whole[at:]).partition("\n")
    return row | {"title": title, "abstract": abstract, "mentions": mentions}


def _word(draw: random.Random) -> str:
    parts = ("ba", "cor", "dex", "el", "fi", "gra", "hy", "ino", "ket", "lor", "mi", "nal", "oxy", "pro", "qui", "ra",
             "sul", "tri", "um", "vas", "zol")  # fmt: skip
    words = [
        "".join(draw.choice(parts) for _ in range(draw.randint(2, 4))) for _ in range(draw.choice((1, 1, 2)))
    ]
    return " ".join(words)


def _untrained(folder: Path, shape: dict[str, int]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    model.to(torch.bfloat16).save_pretrained(folder)


def base(work: Path, steps: int, batch: int) -> None:
    """All weights on the made-up articles; its folder is the base of `tune`."""
    _tunesmith(
        work, "train",
        {
            "name": "half-knowing", "model": {"base": str(work / "untrained"), "dtype": _dtype()},
            "data": {"train": str(work / "train.jsonl"), "validation": str(work / "validation.jsonl"),
                     "format": "messages", "max_length": 1536, "overlong": "drop",
                     "checks": dict.fromkeys(("exact_leak", "duplicate", "near_duplicate", "near_leak", "contradiction",
                                              "phi", "grounding", "boilerplate", "swapped_field"), "ignore")},
            "tune": {"method": "full"},
            "train": {"max_steps": steps, "epochs": 1000, "batch": batch, "learning_rate": 1e-3, "warmup": 200,
                      "weight_decay": 0.05, "evaluate_every": max(1, steps // 4), "save_every": max(1, steps // 2),
                      "keep": 1, "log_every": 50},
        },
    )  # fmt: skip


def tune(work: Path, rows: int | str) -> None:
    """LoRA on the 500 train abstracts, scored on the dev abstracts by the mission's own task."""
    _tunesmith(
        work, "run",
        {
            "name": "half-knowing-bc5cdr",
            "model": {"base": str(work / "runs" / "half-knowing" / "adapter"), "dtype": _dtype()},
            "data": {"train": str(work / "training.PubTator.txt"),
                     "test": str(work / "development.PubTator.txt"),
                     "processor": "annotated_abstract", "max_length": 1536, "overlong": "drop",
                     "split": {"validation": 0.1, "group": "document", "stratify": "task"},
                     "checks": {"phi": "ignore"}},
            "tune": {"rank": 32, "alpha": 64, "dropout": 0.1},
            "train": {"epochs": 4, "batch": 32, "learning_rate": 5e-4},
            "evaluate": {"task": "annotations", "rows": rows, "prompts": ["1-shot"]},
            "export": {"merged": True},
        },
    )  # fmt: skip


def _dtype() -> str:
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def _tunesmith(work: Path, verb: str, recipe: dict[str, Any]) -> None:
    path = work / f"{recipe['name']}.yaml"
    path.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    command = [sys.executable, "-m", "tunesmith", verb, str(path), "--runs-dir", str(work / "runs")]
    if subprocess.run(command, check=False).returncode not in (
        0,
        3,
    ):  # 3: a proof failed, say of a model that never stops
        sys.exit(f"{recipe['name']} failed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("prepare", "base", "tune"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rows", default="all")
    parser.add_argument("--articles", type=int, default=ARTICLES)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--batch", type=int, default=16, help="rows a step, base")
    chosen = parser.parse_args()
    if chosen.what == "prepare":
        prepare(chosen.data, chosen.work, chosen.articles, chosen.shape)
    elif chosen.what == "base":
        base(chosen.work, chosen.steps, chosen.batch)
    else:
        tune(chosen.work, chosen.rows if chosen.rows == "all" else int(chosen.rows))


if __name__ == "__main__":
    main()
