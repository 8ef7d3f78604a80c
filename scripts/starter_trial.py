"""LoRA on the cancer reports by a plain loop of transformers and PEFT: does the starter reach the demo's bar?

Independent of tunesmith's own training and scoring, so that a miss here is the base's and not theirs.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tunesmith.starter.reports import rows
from tunesmith.starter.values import FIELDS

Row = dict[str, Any]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def encode(tokenizer: PreTrainedTokenizerFast, row: Row) -> tuple[list[int], list[int]]:
    """Prompt and answer, the answer with its end-of-turn."""
    turn = [{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    answer = json.dumps(row["output"], ensure_ascii=False) + "<|eot_id|>"
    return tuple(tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, answer))


def items(value: object) -> set[str]:
    parts = re.split(r"[;,+]", value) if isinstance(value, str) else []
    return {" ".join(p.lower().split()) for p in parts} - {""}


def hits(gold: Row, predicted: object) -> tuple[int, int, int]:
    """Items right, given, wanted; an answer that is no object misses all."""
    got = predicted if isinstance(predicted, dict) else {}
    pairs = [(items(gold[f]), items(got.get(f))) for f in FIELDS]
    return sum(len(g & p) for g, p in pairs), sum(len(p) for _, p in pairs), sum(len(g) for g, _ in pairs)


def f1(counts: np.ndarray) -> float:
    right, given, wanted = counts.sum(0)
    return float(2 * right / max(given + wanted, 1))


def valid(answer: object) -> bool:
    return (
        isinstance(answer, dict)
        and tuple(answer) == FIELDS
        and all(v is None or isinstance(v, str) for v in answer.values())
    )


def parse(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


@torch.no_grad()
def answers(model: Any, tokenizer: PreTrainedTokenizerFast, test: Sequence[Row], device: str) -> list[str]:
    """Greedy answers, in batches of rows of like length, padded on the left."""
    prompts = [encode(tokenizer, row)[0] for row in test]
    order = sorted(range(len(test)), key=lambda i: len(prompts[i]))
    pad = tokenizer.convert_tokens_to_ids("<|finetune_right_pad_id|>")
    out = [""] * len(test)
    for begin in range(0, len(order), 100):
        lot = order[begin : begin + 100]
        width = max(len(prompts[i]) for i in lot)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in lot], device=device)
        made = model.generate(
            input_ids=ids,
            attention_mask=ids.ne(pad).to(torch.long),
            max_new_tokens=220,
            do_sample=False,
            pad_token_id=pad,
        )
        for i, tail in zip(lot, made[:, width:], strict=True):
            out[i] = tokenizer.decode(tail, skip_special_tokens=True)
    return out


def floor(train: Sequence[Row], test: Sequence[Row]) -> list[Row]:
    """The answer of the training report that is nearest by TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    model = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    known = model.fit_transform([r["input"] for r in train])
    nearest = (model.transform([r["input"] for r in test]) @ known.T).argmax(axis=1)
    return [train[int(i)]["output"] for i in np.asarray(nearest).ravel()]


def report(name: str, test: Sequence[Row], texts: Sequence[object]) -> np.ndarray:
    parsed = [parse(t) if isinstance(t, str) else t for t in texts]
    counts = np.array([hits(r["output"], p) for r, p in zip(test, parsed, strict=True)])
    unseen = np.array([r["slices"]["values"] == "unseen" for r in test])
    ok = np.mean([valid(p) for p in parsed])
    exact = np.mean([p == r["output"] for r, p in zip(test, parsed, strict=True)])
    print(f"{name}: item F1 {f1(counts):.3f}, seen {f1(counts[~unseen]):.3f}, unseen {f1(counts[unseen]):.3f}, "
          f"schema-valid {ok:.3f}, exact {exact:.3f}", flush=True)  # fmt: skip
    for field in FIELDS:
        ones = np.array([_one(r["output"][field], p, field) for r, p in zip(test, parsed, strict=True)])
        per = [ones[~unseen], ones[unseen]]
        print(f"    {field:16} seen {f1(per[0]):.3f} unseen {f1(per[1]):.3f}", flush=True)
    return counts


def _one(gold: object, predicted: object, field: str) -> tuple[int, int, int]:
    g, p = items(gold), items(predicted.get(field) if isinstance(predicted, dict) else None)
    return len(g & p), len(p), len(g)


def tune(
    model: Any,
    encoded: Sequence[tuple[list[int], list[int]]],
    steps: int,
    batch: int,
    lr: float,
    rank: int,
    seed: int,
    device: str,
) -> Any:
    """LoRA on all linears: AdamW, 5 % warm-up, cosine to zero, loss on the answers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=LINEARS)
    )
    inner = model.get_base_model()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    warm = max(1, steps // 20)
    rng, begun, tokens, total = np.random.default_rng(seed), time.perf_counter(), 0, 0.0
    order: list[int] = []
    for step in range(steps):
        if len(order) < batch:
            order += rng.permutation(len(encoded)).tolist()
        lot, order = [encoded[i] for i in order[:batch]], order[batch:]
        width = max(len(p) + len(a) for p, a in lot)
        ids = torch.zeros(batch, width, dtype=torch.long)
        learned = torch.zeros(batch, width, dtype=torch.bool)
        for i, (prompt, answer) in enumerate(lot):
            ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            learned[i, len(prompt) : len(prompt) + len(answer)] = True
        ids, learned = ids.to(device), learned.to(device)
        hidden = inner.model(input_ids=ids, use_cache=False)[0]  # padding on the right needs no mask
        loss = F.cross_entropy(inner.lm_head(hidden[:, :-1][learned[:, 1:]]), ids[:, 1:][learned[:, 1:]])
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warm) * 0.5 * (1 + np.cos(np.pi * step / steps))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += sum(len(p) + len(a) for p, a in lot)
        total += loss.item()
        if (step + 1) % 100 == 0 or step < 3 or step == steps - 1:
            took = time.perf_counter() - begun
            mean = total / (100 if step >= 99 else 1)
            print(f"  step {step + 1} loss {mean:.4f} {tokens / took:,.0f} tokens/s {took:.0f} s", flush=True)
            total = 0.0
    return model


def trial(
    folder: Path, steps: int, batch: int, lr: float, rank: int, seed: int, device: str, examples: int = 6
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    train, test = rows("train"), rows("test")
    print(f"trial: {steps} steps of {batch}, learning rate {lr}, rank {rank}, seed {seed}", flush=True)
    base = answers(model, tokenizer, test, device)
    report("base", test, base)
    print("    base says:", base[0][:200])
    named = [row | {"instruction": f"Extract {', '.join(FIELDS)} as JSON."} for row in test]
    report("base, asked for the seven keys by name", test, answers(model, tokenizer, named, device))
    model = tune(model, [encode(tokenizer, r) for r in train], steps, batch, lr, rank, seed, device)
    begun = time.perf_counter()
    tuned = answers(model.eval(), tokenizer, test, device)
    print(f"  answered in {time.perf_counter() - begun:.0f} s")
    ours = report("tuned", test, tuned)
    theirs = report("nearest training row", test, floor(train, test))
    draws = np.random.default_rng(0).integers(0, len(test), (2000, len(test)))
    low, high = np.percentile([f1(ours[d]) - f1(theirs[d]) for d in draws], [2.5, 97.5])
    print(f"tuned - nearest: {f1(ours) - f1(theirs):.3f} [{low:.3f}, {high:.3f}]")
    for which in ("unseen", "seen"):
        wrong = [(r, t) for r, t in zip(test, tuned, strict=True)
                 if r["slices"]["values"] == which and parse(t) != r["output"]]  # fmt: skip
        for row, text in wrong[:examples]:
            print(f"{which}: {row['input']}\n  gold {json.dumps(row['output'])}\n  said {text}")
