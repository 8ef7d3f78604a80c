"""A grammar over a tokenizer of bytes, for tests: what it allows next, and where it refuses a text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny
from tiny_run import write_byte_tokenizer
from transformers import PreTrainedModel

from tunesmith.contract import Contract
from tunesmith.generate.guide import SchemaGuide
from tunesmith.model.attention import register

NASTY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "stage": {"enum": ["I", "II", "III", "IV", None]},
        "ಕ್ಯಾನ್ಸರ್ \"ß\"": {"enum": ["ಶ್ವಾಸಕೋಶ", "naïve\n", "😀"]},
        "patient": {
            "type": "object",
            "properties": {
                "age": {"type": ["integer", "null"], "minimum": 0, "maximum": 120},
                "name": {"type": "string", "maxLength": 5},
                "smoker": {"type": "boolean"},
            },
            "required": ["age", "smoker"],
            "additionalProperties": False,
        },
        "sites": {"type": "array", "items": {"enum": ["liver", "bone"]}, "maxItems": 3},
        "size": {"type": ["number", "null"], "minimum": 0, "maximum": 9},
        "nothing": {"type": "null"},
    },
    "required": ["stage", "patient", "sites", "nothing"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    return Contract.make(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")), template="llama3")


def guide(contract: Contract, schema: dict[str, Any] = NASTY, width: int = 262) -> SchemaGuide:
    text = contract.tokenizer_files["tokenizer.json"].decode()
    return SchemaGuide(schema, text, contract.stop_ids, width)


def allowed(one: SchemaGuide, state: Any, width: int = 262) -> set[int]:
    held = one.hold([state], torch.zeros(1, width))
    assert held.shape == (1, width)
    return set(torch.isfinite(held[0]).nonzero()[:, 0].tolist())


def refused_at(one: SchemaGuide, contract: Contract, text: str, width: int = 262) -> int | None:
    """The first token that is forbidden, or before which the answer might have ended; None: it may be said whole."""
    state = one.begin()
    for place, token in enumerate(contract.tokens_of(text)):
        may = allowed(one, state, width)
        if token not in may or may & contract.stop_ids:
            return place
        one.accept([state], [token])
    return None


def random_model(seed: int) -> PreTrainedModel:
    model = tiny(attention=register(), vocab_size=270, max_position_embeddings=2048)
    torch.manual_seed(seed)
    with torch.no_grad():
        model.lm_head.weight.normal_(0.0, 0.08)  # flat enough to leave a number's digits again
    return model
