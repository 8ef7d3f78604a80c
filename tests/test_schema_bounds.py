"""Schemas that no answer is held to: what would end the process, break the schema, or take too long is refused."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from held_answers import contract, guide, refused_at

from tunesmith.contract import Contract
from tunesmith.errors import RecipeError


def test_schemas_that_fail_while_they_are_written_are_refused_before(contract: Contract) -> None:
    """Of so many optional keys the parser gives up at the first; a number of 300 digits has no grammar at all."""
    many: dict[str, Any] = {
        "type": "object",
        "properties": {f"k{n}": {"type": "string"} for n in range(1000)},
    }
    huge = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 10**300}}}
    for schema in (many, huge):
        with pytest.raises(RecipeError, match="can't be held to this schema") as caught:
            guide(contract, schema)
        assert len(caught.value.what) < 300
    guide(contract, many | {"required": list(many["properties"])})


def with_x(keywords: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": keywords}, "required": ["x"], "additionalProperties": False}


@pytest.mark.parametrize(
    "keywords, why",
    [
        ({"type": "integer", "minimum": -(2**63), "maximum": -(2**63) + 9}, "2\\^53"),  # ended the process
        ({"$ref": "#/$defs/far", "$defs": {"far": {"minimum": -(2.0**63), "maximum": -(2.0**63)}}}, "2\\^53"),
        ({"type": "integer", "minimum": 2**53, "maximum": 2**53 + 3}, "2\\^53"),  # was answered with 2^53 + 4
        ({"enum": [{"id": 1234567890123456789}]}, "2\\^53"),  # was answered with 1234567890123456768
        ({"type": "integer", "multipleOf": 499_979}, "multipleOf"),  # seven seconds
        ({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}, "multipleOf"),  # minutes
        ({"type": "string", "pattern": "a?" * 20_000}, "40,000 characters"),  # 800 MB
        ({"patternProperties": {f"^k{n}$": {} for n in range(400)}}, "patternProperties"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ],
)  # fmt: skip
def test_schemas_that_llguidance_is_not_given(contract: Contract, keywords: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=f"can't be held to this schema: .*{why}"):
        guide(contract, with_x(keywords))


def test_a_schema_does_not_loosen_its_own_guide(contract: Contract) -> None:
    """Told to be lenient, llguidance leaves out keywords that it does not know."""
    loose = with_x({"not": {"type": "string"}}) | {"x-guidance": {"lenient": True}}
    with pytest.raises(RecipeError, match="x-guidance is no keyword"):
        guide(contract, loose)


def test_numbers_up_to_where_they_are_exact_are_held(contract: Contract) -> None:
    most = 2**53 - 1  # what zod says of any whole number
    for keywords, fit, not_fit in [
        ({"type": "integer", "minimum": -most, "maximum": most}, most, most + 1),
        ({"type": "integer", "minimum": most - 1, "maximum": most}, most - 1, most - 2),
        ({"type": "integer", "multipleOf": 100}, 4200, 4250),
        ({"type": "number", "multipleOf": 0.01}, 0.07, 0.075),
    ]:
        held = guide(contract, with_x(keywords))
        assert refused_at(held, contract, json.dumps({"x": fit}), 262) is None
        assert refused_at(held, contract, json.dumps({"x": not_fit}), 262) is not None


def test_a_grammar_that_grows_too_large_is_the_schemas_fault(contract: Contract) -> None:
    """A token against the grammar is a fault of ours, and stays a RuntimeError."""
    held = guide(contract, with_x({"type": "string", "pattern": "^a{1000000}$"}))
    state = held.begin()

    def write(text: str) -> None:
        for one in contract.tokens_of(text):
            held.hold([state], torch.zeros(1, 262))
            held.accept([state], [one])

    with pytest.raises(RecipeError, match="too many expressions"):
        write('{"x":"aaa')
    with pytest.raises(RuntimeError, match="chosen against the grammar"):
        (sound := guide(contract)).accept([sound.begin()], contract.tokens_of("x"))
