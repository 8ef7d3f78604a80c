"""The live generator on a GGUF: the batch generator's answers, whoever else asks, comes late or goes early."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from live_answers import Ear, Heard, close_where_it_stands, write
from safetensors.torch import load_file, save_file

from tunesmith import starter
from tunesmith.contract import Contract
from tunesmith.errors import ModelError, NotFinite, RecipeError
from tunesmith.example import Message
from tunesmith.export.gguf.write import write_gguf
from tunesmith.generate.llama_cpp import LiveLlama, LlamaGenerator, LlamaModel
from tunesmith.generate.protocol import Decoding, LiveLoad, LiveRequest
from tunesmith.starter import reports

NOISE = 2e-3  # as in test_llama_cpp.py
SCHEMA = {
    "type": "object",
    "properties": {"site": {"enum": ["lung", "none"]}},
    "required": ["site"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, llama_cpp: Any, contract: Contract) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "f32.gguf"
    write_gguf(starter.base_folder(), out, "F32", contract)
    return out


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract.make(starter.base_folder())


@pytest.fixture(scope="module")
def requests(contract: Contract) -> list[LiveRequest]:
    texts = [str(row["input"]) for row in reports.rows("test", 10)]
    prompts = [
        contract.prompt_ids([Message("user", text[: 40 + 60 * (i % 3)])]) for i, text in enumerate(texts)
    ]
    heat = (0.0, 0.7, 0.0, 1.2, 0.7)
    return [
        LiveRequest(prompt, 8 + 4 * (i % 5), contract.stop_ids, heat[i % 5], 0.9 if i % 2 else 1.0, i, i % 3)
        for i, prompt in enumerate(prompts)
    ]


@pytest.fixture
def live(file: Path, contract: Contract) -> Iterator[Callable[..., LiveLlama]]:
    made: list[LiveLlama] = []

    def maker(slots: int = 4, context: int = 512) -> LiveLlama:
        made.append(LiveLlama(LlamaModel.open(file, context=context, slots=slots), contract))
        return made[-1]

    yield maker
    for one in made:
        one.close()


def by_batch(file: Path, request: LiveRequest) -> Heard:
    """The batch generator's answer to this alone."""
    from tunesmith.generate.protocol import LiveToken

    decoding = Decoding(
        request.max_tokens, request.temperature, request.top_p, request.seed, request.sample + 1
    )
    done = {(0, sample) for sample in range(request.sample)}
    with LlamaModel.open(file, context=512, slots=1) as model:
        (one,) = LlamaGenerator(model).generate([request.prompt], decoding, request.stop_ids, done)
    ids = [*one.ids, -1] if one.stopped else one.ids
    tokens = [LiveToken(token, logprob) for token, logprob in zip(ids, one.token_logprobs, strict=True)]
    return Heard(tokens, end="stop" if one.stopped else "length")


def same(heard: Heard, expected: Heard, request: LiveRequest) -> bool:
    ids = [-1 if one in request.stop_ids else one for one in heard.ids]
    pairs = zip(heard.tokens, expected.tokens, strict=False)
    return (
        heard.end == expected.end
        and ids == expected.ids
        and max(abs(a.logprob - b.logprob) for a, b in pairs) < NOISE
    )


def test_answers_are_those_of_the_batch_generator(
    live: Callable[..., LiveLlama], file: Path, requests: list[LiveRequest]
) -> None:
    expected = [by_batch(file, request) for request in requests]
    for slots in (1, 3, 16):
        made = write(live(slots), requests)
        assert all(map(same, made, expected, requests)), f"{slots} slots"


def test_a_wrong_seed_is_seen(
    live: Callable[..., LiveLlama], file: Path, requests: list[LiveRequest]
) -> None:
    expected = [by_batch(file, request) for request in requests]
    made = write(live(), [replace(request, seed=request.seed + 1) for request in requests])
    agree = [same(*three) for three in zip(made, expected, requests, strict=True)]
    greedy = [request.temperature == 0 for request in requests]
    assert agree == greedy or sum(agree) < len(agree)
    assert all(agree[i] for i, yes in enumerate(greedy) if yes)


def test_who_comes_late_or_goes_early_changes_nobody(
    live: Callable[..., LiveLlama], file: Path, requests: list[LiveRequest]
) -> None:
    expected = [by_batch(file, request) for request in requests]
    one, ear = live(3), Ear()
    ear.stand(100, 20)
    one.start(ear)
    long = replace(requests[0], max_tokens=400, stop_ids=frozenset())
    one.submit(100, long)
    for ticket, request in enumerate(requests):
        one.submit(ticket, request)
        time.sleep(0.01)
    ear.wait(100, tokens=20)
    one.cancel(100)
    one.cancel(999)
    ear.go()
    ear.wait(100, *range(len(requests)))
    assert ear.heard[100].end == "cancelled"
    made = [ear.heard[ticket] for ticket in range(len(requests))]
    assert all(map(same, made, expected, requests))
    assert one.load() == LiveLoad(0, 0, sum(len(heard.tokens) for heard in ear.heard.values()))


def test_a_cancel_takes_effect_before_the_next_token_but_one(
    live: Callable[..., LiveLlama], requests: list[LiveRequest]
) -> None:
    one, ear = live(1), Ear()
    ear.stand(0, 3)
    one.start(ear)
    long = replace(requests[0], max_tokens=400, stop_ids=frozenset())
    one.submit(0, long)
    one.submit(1, long)  # waits: there is one slot
    ear.wait(0, tokens=3)
    assert one.load().waiting == 1
    one.cancel(1)
    ear.stand(0, 6)
    ear.go()
    ear.wait(1)
    assert ear.heard[1].end == "cancelled" and not ear.heard[1].tokens
    ear.wait(0, tokens=6)
    one.cancel(0)
    at = len(ear.heard[0].tokens)
    ear.go()
    ear.wait(0)
    assert ear.heard[0].end == "cancelled" and len(ear.heard[0].tokens) <= at + 2
    one.submit(2, replace(long, max_tokens=2))
    ear.wait(2)
    assert ear.heard[2].end == "length"  # its slot was free again


def test_a_long_prompt_does_not_hold_up_answers_in_progress(
    live: Callable[..., LiveLlama], requests: list[LiveRequest]
) -> None:
    one, ear = live(2, 4096), Ear()
    ear.stand(0, 2)
    one.start(ear)
    one.submit(0, replace(requests[0], max_tokens=300, stop_ids=frozenset()))
    ear.wait(0, tokens=2)
    one.submit(1, LiveRequest([7] * 3000, 1, frozenset()))
    ear.go()
    ear.wait(1)
    turns = [{event.ticket for event in turn} for turn in ear.turns]
    begun = len([turn for turn in turns[: turns.index(next(t for t in turns if 1 in t))] if 0 in turn])
    assert begun >= 3000 // 512  # a token beside each part of the prompt


def test_what_is_told_beside_the_tokens(
    live: Callable[..., LiveLlama], file: Path, requests: list[LiveRequest]
) -> None:
    asked = [
        replace(requests[0], top=5, prompt_logprobs=True, stop_ids=frozenset()),
        replace(requests[1], max_tokens=0, prompt_logprobs=True),
        replace(requests[2], max_tokens=0),
        replace(requests[0], stop_ids=frozenset(range(2048))),
    ]
    told, scored, nothing, stopped = write(live(2), asked)
    assert stopped.end == "stop" and len(stopped.tokens) == 1
    assert nothing.end == "length" and not nothing.tokens and not nothing.prompt
    assert scored.end == "length" and not scored.tokens
    with LlamaModel.open(file, context=512, slots=1) as model:
        for heard, request in ((told, asked[0]), (scored, asked[1])):
            prompt = list(request.prompt)
            exact = model.logits([prompt], [[True] * len(prompt)]).log_softmax(-1)
            assert [token.id for token in heard.prompt] == prompt
            assert math.isnan(heard.prompt[0].logprob)
            after = exact[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
            got = torch.tensor([token.logprob for token in heard.prompt[1:]])
            assert float((got - after).abs().max()) < NOISE
            assert [len(token.top) for token in heard.prompt[1:]] == [request.top] * (len(prompt) - 1)
        values, ids = exact_of(model, asked[0]).topk(5)
    assert [one for one, _ in told.tokens[0].top] == ids.tolist()
    assert max(abs(a - b) for (_, a), b in zip(told.tokens[0].top, values.tolist(), strict=True)) < NOISE
    assert all(token.top[0] == (token.id, token.logprob) for token in told.tokens)  # greedy


def exact_of(model: LlamaModel, request: LiveRequest) -> torch.Tensor:
    prompt = list(request.prompt)
    return model.logits([prompt], [[False] * (len(prompt) - 1) + [True]])[0].log_softmax(-1)


def test_schemas_hold_each_answer_to_its_own(
    live: Callable[..., LiveLlama], contract: Contract, requests: list[LiveRequest]
) -> None:
    other = SCHEMA | {"properties": {"n": {"enum": [1, 22]}}, "required": ["n"]}
    schemas = [SCHEMA, other, None, SCHEMA, other]
    asked = [
        replace(request, schema=schema, max_tokens=100, temperature=0.0)
        for request, schema in zip(requests, schemas, strict=False)
    ]
    engine = live()
    made = write(engine, asked)
    for heard, schema in zip(made, schemas, strict=True):
        if schema is not None:
            assert heard.end == "stop"
            answer = json.loads(contract.decode(heard.ids))
            assert answer.get("site", "none") in ("lung", "none") and answer.get("n", 1) in (1, 22)
            assert answer.keys() == schema["properties"].keys()  # type: ignore[attr-defined]


def test_requests_that_cannot_be_answered(
    live: Callable[..., LiveLlama], requests: list[LiveRequest]
) -> None:
    engine, good = live(), requests[0]
    engine.start(lambda events: None)
    for wrong, says in (
        (replace(good, prompt=[]), "the prompt is empty"),
        (replace(good, max_tokens=512), "more than the 512 that there is room for"),
        (replace(good, prompt=[2048]), "beyond the model's 2048 tokens"),
        (replace(good, prompt=[-1]), "beyond the model's 2048 tokens"),
        (replace(good, adapter="x"), "no adapter 'x'"),
        (replace(good, temperature=-1), "may not be negative"),
        (replace(good, top_p=2), "top_p is from 0 to 1"),
    ):
        with pytest.raises(ModelError, match=says):
            engine.submit(1, wrong)
    with pytest.raises(RecipeError, match="schema"):
        engine.submit(1, replace(good, schema={"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}))
    assert engine.load() == LiveLoad(0, 0, 0)
    assert engine.adapters == () and engine.slots == 4 and engine.room == 512
    engine.close()
    with pytest.raises(ModelError, match="being unloaded"):
        engine.submit(1, good)


def test_closing_ends_what_is_in_progress(
    live: Callable[..., LiveLlama], requests: list[LiveRequest]
) -> None:
    engine, ear = live(1), Ear()
    ear.stand(0, 1)
    engine.start(ear)
    long = replace(requests[0], max_tokens=400, stop_ids=frozenset())
    engine.submit(0, long)
    engine.submit(1, long)
    ear.wait(0, tokens=1)
    close_where_it_stands(engine, ear)
    engine.close()
    assert [ear.heard[ticket].end for ticket in (0, 1)] == ["cancelled", "cancelled"]
    assert "llama.cpp" not in {thread.name for thread in threading.enumerate()}


def test_a_failure_ends_its_answer_and_no_other(
    live: Callable[..., LiveLlama], file: Path, requests: list[LiveRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ear = live(2), Ear()
    decode = engine.model.decode

    def overflows(tokens: Any, positions: Any, slots: Any, wanted: Any) -> torch.Tensor:
        logits = decode(tokens, positions, slots, wanted)
        if 1 in slots and positions[list(slots).index(1)] == len(requests[1].prompt) + 2:
            logits[[row for row, slot in enumerate(slots) if slot == 1]] = float("nan")
        return logits

    monkeypatch.setattr(engine.model, "decode", overflows)
    engine.start(ear)
    for ticket, request in enumerate(requests[:2]):
        engine.submit(ticket, request)
    ear.wait(0, 1)
    assert ear.heard[1].end == "failed" and isinstance(ear.heard[1].error, NotFinite)
    assert len(ear.heard[1].tokens) == 3
    assert same(ear.heard[0], by_batch(file, requests[0]), requests[0])


def test_what_is_not_finite_does_not_stay_in_its_slot(contract: Contract, tmp_path: Path) -> None:
    """A model that has no number for one token: answers after it in the same slots are those of before."""
    folder, out = tmp_path / "base", tmp_path / "soiled.gguf"
    shutil.copytree(starter.base_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][90] = 12288.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_gguf(folder, out, "F32", contract)
    row = torch.full((config["hidden_size"],), 12288.0)
    content = out.read_bytes()
    assert content.count(row.numpy().tobytes()) == 1
    out.write_bytes(content.replace(row.numpy().tobytes(), row.mul(math.nan).numpy().tobytes()))
    sound, longer = LiveRequest([60, 61, 62], 6, frozenset()), LiveRequest([70, 71], 40, frozenset())
    broken = LiveRequest([60, 61, 62, 63, 90, 64], 6, frozenset())
    engine, ear = LiveLlama(LlamaModel.open(out, context=256, slots=2), contract), Ear()
    engine.start(ear)
    asked = [sound, longer, broken, replace(broken, prompt_logprobs=True, max_tokens=0), sound, sound]
    engine.submit(0, asked[0])
    ear.wait(0)
    for ticket, request in list(enumerate(asked))[1:]:
        engine.submit(ticket, request)
    ear.wait(*range(6))
    engine.close()
    assert [ear.heard[n].end for n in range(6)] == ["length"] * 2 + ["failed"] * 2 + ["length"] * 2
    assert ear.heard[0].ids == ear.heard[4].ids == ear.heard[5].ids


def test_a_step_that_breaks_ends_its_answers_and_the_next_one_works(
    live: Callable[..., LiveLlama], file: Path, requests: list[LiveRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ear = live(2), Ear()
    monkeypatch.setattr(engine.model, "decode", lambda *_: 1 / 0)
    engine.start(ear)
    engine.submit(0, requests[0])
    ear.wait(0)
    assert ear.heard[0].end == "failed" and isinstance(ear.heard[0].error, ZeroDivisionError)
    monkeypatch.undo()
    engine.submit(1, requests[0])
    ear.wait(1)
    assert same(ear.heard[1], by_batch(file, requests[0]), requests[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_leaves_nobody_waiting(
    live: Callable[..., LiveLlama], requests: list[LiveRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ear = live(1), Ear()
    monkeypatch.setattr(engine, "_admit", lambda slots: 1 / 0)
    engine.start(ear)
    engine.submit(0, requests[0])
    ear.wait(0)
    assert ear.heard[0].end == "failed" and isinstance(ear.heard[0].error, ModelError)
    assert engine.closed


def test_a_grammar_that_fails_ends_its_answer_alone(
    live: Callable[..., LiveLlama], requests: list[LiveRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ear = live(3), Ear()
    sound = engine._guides.of(SCHEMA, requests[0].stop_ids)
    hold, begun = sound.hold, []

    def begin() -> Any:
        begun.append(type(sound).begin(sound))
        return begun[-1]

    def failing(states: Any, logits: torch.Tensor) -> torch.Tensor:
        if any(state is begun[0] for state in states):
            raise RecipeError("this grammar has grown too large")
        return hold(states, logits)

    monkeypatch.setattr(sound, "begin", begin)
    monkeypatch.setattr(sound, "hold", failing)
    engine.start(ear)
    held = replace(requests[0], schema=SCHEMA, max_tokens=40)
    engine.submit(0, held)
    engine.submit(1, held)
    engine.submit(2, requests[0])
    ear.wait(0, 1, 2)
    assert [ear.heard[ticket].end for ticket in (0, 1)] == ["failed", "stop"]
    assert isinstance(ear.heard[0].error, RecipeError) and ear.heard[2].end in ("stop", "length")


def test_a_token_that_its_grammar_refuses_ends_its_answer_alone(
    live: Callable[..., LiveLlama], requests: list[LiveRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = live(3)
    held = replace(requests[0], schema=SCHEMA, max_tokens=40)
    sound = engine._guides.of(SCHEMA, held.stop_ids)

    def refuse(states: Any, tokens: Any) -> None:
        raise RuntimeError("chosen against the grammar")

    monkeypatch.setattr(sound, "accept", refuse)
    made = write(engine, [held, replace(requests[1], schema=None, max_tokens=20, stop_ids=frozenset())])
    assert [heard.end for heard in made] == ["failed", "length"]
