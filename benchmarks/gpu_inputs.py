"""What `train_gpu.py` trains: a base of a known shape with random weights, and rows whose lengths are known.

Random weights and words do for speed and memory; they say nothing about quality. A word is a token, so a row's length
is what is asked for, whatever the base.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    },
    "llama-3.2-3b": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": True,
    },
}  # fmt: skip
FULL = 2048  # tokens of a full row
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def shape_config(shape: str) -> Any:
    """transformers' configuration of a shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def make_base(folder: Path, shape: str, tokenizer: Path | None) -> None:
    """A folder of the shape, weights drawn from N(0, 0.02); `tokenizer`: a folder, else one token a word."""
    import torch
    from transformers import LlamaForCausalLM

    config = shape_config(shape)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    model.tie_weights()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0) if parameter.ndim == 1 else parameter.normal_(0, 0.02)
    model.config.architectures, model.config.dtype = ["LlamaForCausalLM"], "bfloat16"
    model.save_pretrained(folder, max_shard_size="4GB")
    if tokenizer is None:
        word_tokenizer(folder, config.vocab_size)
        return
    for file in tokenizer.iterdir():
        shutil.copy(file, folder / file.name)


def word_tokenizer(folder: Path, vocabulary: int) -> None:
    """Of so many tokens, each a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict(zip(_SPECIAL, range(len(_SPECIAL)), strict=True))
    words |= {f"t{i}": i for i in range(len(_SPECIAL), vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    found.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ ' ' + message['content'] + ' ' + eos_token + ' ' }}"
        "{% endfor %}"
    )
    found.save_pretrained(folder)


def make_rows(folder: Path, kind: str, count: int, vocabulary: int) -> None:
    """`full`: plain text of FULL tokens, all learned; `ragged`: log-normal, about 190 prompt and 90 answer tokens,
    the answer learned, as in the extraction missions."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)

    def words(n: int) -> str:
        return " ".join(f"t{i}" for i in draw.integers(len(_SPECIAL), vocabulary, n))

    with (folder / "train.jsonl").open("w") as file:
        for _ in range(count):
            if kind == "full":
                row = {"text": words(FULL - 2)}  # and a token at both ends
            else:
                prompt = int(min(1500, max(60, draw.lognormal(5.2, 0.5))))
                answer = int(min(400, max(40, draw.lognormal(4.4, 0.3))))
                row = {"prompt": words(prompt), "completion": words(answer)}
            file.write(json.dumps(row) + "\n")
