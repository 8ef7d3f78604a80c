"""Answers held to a JSON schema: whatever the weights, an answer that ended fits, and nothing right is forbidden."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from held_answers import NASTY, allowed, contract, guide, random_model, refused_at
from jsonschema import Draft202012Validator
from tiny_models import tiny
from tiny_run import write_byte_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.errors import ModelError, NotFinite, RecipeError
from tunesmith.example import Message
from tunesmith.generate.guide import SchemaGuide, require_schema
from tunesmith.generate.protocol import Decoding, Generated
from tunesmith.generate.slots import SlotGenerator
from tunesmith.model.attention import register
from tunesmith.model.load import load_model
from tunesmith.recipe import Model
from tunesmith.starter.reports import rows
from tunesmith.tasks import make_task

FITS = [
    '{"stage": null, "patient": {"age": 61, "smoker": true}, "sites": [], "nothing": null}',
    '{"stage":"IV","ಕ್ಯಾನ್ಸರ್ \\"ß\\"":"ಶ್ವಾಸಕೋಶ","patient":{"age":null,"name":"Zoë 😀","smoker":false},'
    '"sites":["bone","liver"],"size":8.5,"nothing":null}',
    '{\n  "stage": "II",\n  "patient": {\n    "age": 0,\n    "smoker": false\n  },\n  "sites": [\n    "bone"\n  ],'
    '\n  "nothing": null\n}',
]
BREAKS = [
    '{"stage": "V"', '{"patient"', '{"stage": null, "patient": {"age": 121', "[", " {", '{"stage": "I", "x"',
    '{"stage": "I", "patient": {"age": 1, "smoker": 1', '{"stage": null' + "\n" * 30,
]  # fmt: skip


# ---- the grammar itself


@pytest.mark.parametrize("answer", FITS)
def test_what_fits_may_be_said_and_end_there_alone(contract: Contract, answer: str) -> None:
    Draft202012Validator(NASTY).validate(json.loads(answer))
    one = guide(contract)
    ids = contract.tokens_of(answer)
    assert refused_at(one, contract, answer) is None
    state = one.begin()
    for token in ids:
        one.accept([state], [token])
    assert allowed(one, state) == set(
        contract.stop_ids
    )  # by the terminator or the end of text, and by nothing else


@pytest.mark.parametrize("begin", BREAKS)
def test_what_breaks_the_schema_is_stopped_at_its_first_wrong_token(contract: Contract, begin: str) -> None:
    found = refused_at(guide(contract), contract, begin)
    assert found is not None


def test_control_tokens_and_what_lies_beyond_the_vocabulary_are_never_allowed(contract: Contract) -> None:
    one = guide(contract, {"properties": {"free": {"type": "string"}}, "required": ["free"]}, width=300)
    state = one.begin()
    for token in contract.tokens_of('{"free": "any'):
        one.accept([state], [token])
    may = allowed(one, state, width=300)
    assert not may & {0, 1, 2, 3, 4, 5} and max(may) < 262
    assert len(may) > 140  # any other byte that text can go on with


def test_answers_side_by_side_are_held_each_to_its_own_place(contract: Contract) -> None:
    one = guide(contract)
    states = [one.begin() for _ in range(5)]
    ids = contract.tokens_of(FITS[0])
    for number, state in enumerate(states):
        for token in ids[: number * 7]:
            one.accept([state], [token])
    together = one.hold(states, torch.zeros(5, 262))
    for state, row in zip(states, together, strict=True):
        assert torch.equal(row, one.hold([state], torch.zeros(1, 262))[0])
    assert len({tuple(row.isfinite().tolist()) for row in together}) > 2


def test_the_key_names_schema_and_ends(contract: Contract) -> None:
    text = contract.tokenizer_files["tokenizer.json"].decode()
    keys = {
        guide(contract).key,
        guide(contract, {"properties": {"a": {}}}).key,
        SchemaGuide(NASTY, text, frozenset({5}), 262).key,
    }
    assert len(keys) == 3 and guide(contract).key in keys


def test_a_token_against_the_grammar_is_a_bug_and_what_follows_an_end_is_not(contract: Contract) -> None:
    one = guide(contract)
    with pytest.raises(RuntimeError, match="against the grammar"):
        one.accept([one.begin()], contract.tokens_of("x"))
    state = one.begin()
    for token in [*contract.tokens_of(FITS[0]), contract.terminator_id, 77]:
        one.accept([state], [token])


# ---- what can't be held


def test_a_task_without_a_schema_is_told() -> None:
    with pytest.raises(RecipeError, match="the task text has no JSON schema") as caught:
        require_schema(make_task("text"))
    assert caught.value.where == "evaluate.constrained" and caught.value.exit_code == 2


def test_a_schema_that_cannot_be_held_is_told() -> None:
    properties = {"a": {"not": {"type": "string"}}}
    with pytest.raises(RecipeError, match='Unimplemented keys: \\["not"\\]') as caught:
        require_schema(make_task("extraction", {"type": "object", "properties": properties}))
    assert caught.value.where == "data.schema"


def test_a_broken_tokenizer_is_told() -> None:
    with pytest.raises(ModelError, match="can't be constrained with this tokenizer"):
        SchemaGuide(NASTY, "{}", frozenset({5}), 262)


# ---- whatever the weights


def written(
    model: PreTrainedModel, held: SchemaGuide, contract: Contract, temperature: float, max_tokens: int = 300
) -> list[tuple[str, Generated]]:
    prompts = [contract.tokens_of(text) for text in ("a", "report", "ಕ")]
    decoding = Decoding(max_tokens, temperature, seed=3, samples=8 if temperature else 1)
    found = SlotGenerator(model, slots=7).generate(prompts, decoding, contract.stop_ids, guide=held)
    return [(contract.decode(one.ids), one) for one in found]


def require_fit(found: Sequence[tuple[str, Generated]], schema: dict[str, Any]) -> None:
    """Every answer that ended fits the schema, and some did end; a cut one is none, or was cut at its very end."""
    assert sum(one.stopped for _, one in found) >= 3
    for text, one in found:
        try:
            Draft202012Validator(schema).validate(json.loads(text))
        except json.JSONDecodeError:
            assert not one.stopped


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_fit_the_schema(contract: Contract, seed: int) -> None:
    found = written(random_model(seed), guide(contract, width=270), contract, temperature=1.0)
    assert len(found) == 24
    require_fit(found, NASTY)


def test_greedy_answers_of_random_weights_fit_or_are_cut(contract: Contract) -> None:
    for seed in range(3):
        for text, one in written(random_model(seed), guide(contract, width=270), contract, 0.0):
            if one.stopped:
                Draft202012Validator(NASTY).validate(json.loads(text))
            else:
                assert len(one.ids) == 300


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_is_not_finite_is_told_under_a_grammar_too(
    contract: Contract, temperature: float
) -> None:
    model = random_model(1)
    with torch.no_grad():
        model.lm_head.weight[:] = torch.nan
    with pytest.raises(NotFinite, match="not finite"):
        written(model, guide(contract, width=270), contract, temperature)


def test_slots_change_no_constrained_answer(contract: Contract) -> None:
    model, held = random_model(1), guide(contract, width=270)
    prompts = [contract.tokens_of(text) for text in ("a", "report", "ಕ")]
    decoding = Decoding(200, 1.0, seed=3, samples=4)
    made = [
        {
            (one.index, one.sample): one.ids
            for one in SlotGenerator(model, slots=n).generate(
                prompts, decoding, contract.stop_ids, guide=held
            )
        }
        for n in (1, 5)
    ]
    assert made[0] == made[1] and len(made[0]) == 12


class Shifted(SchemaGuide):
    """The mask is one token off."""

    def hold(self, states: Sequence[Any], logits_NV: Tensor) -> Tensor:
        mask = super().hold(states, torch.zeros_like(logits_NV)).roll(1, dims=1)
        return logits_NV + mask


class Standing(SchemaGuide):
    """The matcher is never moved on."""

    def accept(self, states: Sequence[Any], tokens: Sequence[int]) -> None:
        pass


class Swapped(SchemaGuide):
    """Each answer is held to its neighbour's place."""

    def hold(self, states: Sequence[Any], logits_NV: Tensor) -> Tensor:
        return super().hold([*states[1:], *states[:1]], logits_NV)


class Open(SchemaGuide):
    """Nothing is forbidden."""

    def hold(self, states: Sequence[Any], logits_NV: Tensor) -> Tensor:
        return logits_NV

    def accept(self, states: Sequence[Any], tokens: Sequence[int]) -> None:
        pass


@pytest.mark.parametrize("mutant", [Shifted, Standing, Swapped, Open])
def test_mutants_are_caught(contract: Contract, mutant: Callable[..., SchemaGuide]) -> None:
    text = contract.tokenizer_files["tokenizer.json"].decode()
    broken = mutant(NASTY, text, contract.stop_ids, 270)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        require_fit(written(random_model(0), broken, contract, temperature=1.0, max_tokens=120), NASTY)


# ---- the starter


@pytest.fixture(scope="module")
def starter() -> tuple[PreTrainedModel, Contract]:
    base = resolve(Model(base="starter"))
    return load_model(base, dtype="float32"), Contract.make(base.tokenizer_folder)


def golds(split: str, count: int) -> list[str]:
    return [json.dumps(row["output"], ensure_ascii=False) for row in rows(split, count)]


def test_the_starter_may_say_every_gold_answer_and_says_nothing_that_breaks_the_schema(
    starter: tuple[PreTrainedModel, Contract],
) -> None:
    model, contract = starter
    task = make_task("auto", None, golds("train", 200))
    held = SchemaGuide.of(task, contract, model)
    for gold in golds("train", 40):
        assert refused_at(held, contract, gold, model.config.vocab_size) is None
    asked = [Message("user", f"{row['instruction']}\n{row['input']}") for row in rows("test", 12)]
    prompts = [contract.prompt_ids([one]) for one in asked]
    decoding = Decoding(220, 0.0)
    found = list(SlotGenerator(model, slots=6).generate(prompts, decoding, contract.stop_ids, guide=held))
    plain = list(SlotGenerator(model, slots=6).generate(prompts, decoding, contract.stop_ids))
    require_fit([(contract.decode(one.ids), one) for one in found], task.schema)  # type: ignore[attr-defined]
    fit = [task.parse(contract.decode(one.ids)) for one in plain]
    # the untuned starter by itself does not: what is shown above comes from the guide
    assert sum(one.value is None or one.has("schema") for one in fit) > 6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_card_holds_the_same_tokens(contract: Contract, dtype: torch.dtype) -> None:
    held = guide(contract, width=270)
    states = [held.begin() for _ in range(3)]
    for token in contract.tokens_of('{"stage": '):
        held.accept(states[1:], [token] * 2)
    logits = torch.randn(3, 270)
    there = held.hold(states, logits.to("cuda", dtype))
    assert there.dtype == dtype and torch.equal(there.cpu(), held.hold(states, logits.to(dtype)))
    model = random_model(0).to("cuda", dtype)
    require_fit(written(model, guide(contract, width=270), contract, temperature=1.0), NASTY)
