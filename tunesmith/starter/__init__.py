"""The embedded default: a tiny trained base model and the generator of synthetic cancer reports.

Light to import: the generator is in `reports`, its values in `values`, the model's files in `base/`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tunesmith.errors import ModelError

SHA256 = {
    "config.json": "7b0e600e0cd627fe2f1a27bda9e1bf2583c01e1070f76da68de73141e9fd983a",
    "generation_config.json": "0078b4a16d65927b5e408f99c83122aa2a46db611b7b91cb36f2344bcff42307",
    "model.safetensors": "846c6e8e2b37eb734a68e05daf0b11d28b02c05ac177a4d17ea5062bbbd641bd",
    "special_tokens_map.json": "532260b3986ce3457ad9994f3125a4929607eabae019b9831fc2db32cabcab7b",
    "tokenizer.json": "401508ecde77ab508010f070deddf658fc4677cae0b78347a35a5d5af2a6f3fa",
    "tokenizer_config.json": "7a02cbbe61ff39d2d1fcad3fd354b1e0597c384e11edc6394f8e2ff4f1023303",
}
"""Of the base's files, as scripts/make_starter.py wrote them."""


def base_folder() -> Path:
    """The folder of the tiny base. ModelError where a file is missing or isn't the one that was shipped."""
    folder = Path(__file__).parent / "base"
    for name, expected in SHA256.items():
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        if found != expected:
            raise ModelError(
                f"the starter's {name} is {'missing' if found is None else 'not the one that was shipped'}",
                where=str(path),
                fix="install tunesmith again",
            )
    return folder
