"""The starter's tokenizer: byte-level BPE with Llama 3's special tokens, made for copying.

A word has the same tokens after a space as after a quotation mark: no merge joins a space to a word, but for the
commonest function words (last in rank, and no short one that often begins a longer word, as "to" does). Digits and
capitals of codes stay single. The split is GPT-2's, which llama.cpp knows, so the tokenizer survives an export.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from starter_sentences import CLAUSES, CLINIC, FILLERS
from starter_words import (
    ADJECTIVES,
    CLINICAL,
    FUNCTION,
    NOUNS,
    PREPOSITIONS,
    VERBS,
    allowed,
    invented,
    medical,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

SIZE = 2048
SPECIAL = [
    f"<|{name}|>"
    for name in (
        "begin_of_text end_of_text start_header_id end_header_id eot_id finetune_right_pad_id eom_id python_tag".split()
    )
]
# merges besides those of words: JSON's joints, and function words with their space
_JOINTS = [("{", '"'), ('"', ":"), ('"', ","), ('"', "}"), ("Ġ", '"')]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def _corpus() -> Iterator[str]:
    rng = random.Random("tokenizer")
    sentences = [*CLAUSES, *FILLERS, *(s for group in CLINIC.values() for s in group)]
    prose = [w for s in sentences for w in re.findall(r"[A-Za-z]{2,}", re.sub(r"\{\w+\}", "", s))]
    lists = (NOUNS, NOUNS, ADJECTIVES, VERBS, [*PREPOSITIONS, *FUNCTION], CLINICAL, CLINICAL, prose)
    for _ in range(60_000):
        word = rng.choice(rng.choice(lists))
        yield word.capitalize() if rng.random() < 0.08 else word
    for i in range(80_000):
        word = medical(rng) if i % 4 else invented(rng)
        if allowed(word):
            yield word


def build() -> Tokenizer:
    """The tokenizer, always the same; SIZE ids, special ones last."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    functions = list(dict.fromkeys([w for w in FUNCTION if len(w) > 2] + ["of", "is", "null"]))
    room = SIZE - len(SPECIAL) - len(_JOINTS) - len(functions)
    trainer = trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    words.train_from_iterator(["null"] * 2000 + list(_corpus()), trainer)
    learned = json.loads(words.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    vocab = dict(learned["vocab"])
    whole = [("Ġ", w) for w in functions if w in vocab]
    for merge in [*_JOINTS, *whole]:
        merges.append(merge)
        vocab["".join(merge)] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    if len(vocab) != SIZE - len(SPECIAL):
        raise SystemExit(f"{len(vocab)} tokens, {SIZE - len(SPECIAL)} wanted; no single token: "
                         f"{[w for w in functions if w not in vocab]}")  # fmt: skip
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    bos = SPECIAL[0]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, longest: int) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = {"bos_token": SPECIAL[0], "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    config = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": TEMPLATE,
    }
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
