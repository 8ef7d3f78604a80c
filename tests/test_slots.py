"""The slot generator against transformers' own `generate` and full forward passes."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from tiny_models import tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.generation import TopPLogitsWarper

from tunesmith.errors import ModelError, NotFinite
from tunesmith.generate import cache, room, sampling, slots
from tunesmith.generate.protocol import Decoding, Generated
from tunesmith.generate.sampling import bytes_a_logit, choose
from tunesmith.generate.slots import SlotGenerator
from tunesmith.kernels.chosen import kernels_for
from tunesmith.model.attention import ATTENTION, register
from tunesmith.model.lora import adapters, adapters_off, add_lora
from tunesmith.recipe import Recipe, Tune

KINDS = ["llama", "mistral", "qwen2", "qwen3"]
STOPS = frozenset(range(0, 96, 8))
LENGTHS = [9, 1, 17, 4, 30, 4, 12, 23, 2, 8, 16, 5, 11]
GREEDY = Decoding(max_tokens=12)


def prompts() -> list[list[int]]:
    torch.manual_seed(3)
    return [torch.randint(3, 96, (length,)).tolist() for length in LENGTHS]


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return tiny(kind, dtype=dtype, attention=register())


def in_order(answers: Iterable[Generated]) -> list[Generated]:
    return sorted(answers, key=lambda answer: (answer.index, answer.sample))


def answer_all(
    model: PreTrainedModel, decoding: Decoding = GREEDY, count: int = 4, stops: frozenset[int] = STOPS
) -> list[Generated]:
    return in_order(SlotGenerator(model, slots=count).generate(prompts(), decoding, stops))


def referee(model: PreTrainedModel, stops: frozenset[int] = STOPS) -> list[list[int]]:
    """transformers, one prompt at a time, stop token included."""
    model.set_attn_implementation("sdpa")
    answers = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=GREEDY.max_tokens,
            eos_token_id=sorted(stops),
            pad_token_id=0,
        )
        answers.append(whole[0, len(prompt) :].tolist())
    model.set_attn_implementation(ATTENTION)
    return answers


def agrees(answers: list[Generated], expected: list[list[int]]) -> bool:
    return all(
        answer.ids == (ids[:-1] if ids[-1] in STOPS else ids) and answer.stopped == (ids[-1] in STOPS)
        for answer, ids in zip(answers, expected, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_transformers(kind: str) -> None:
    model = model_of(kind)
    expected = referee(model)
    lengths = {len(ids) for ids in expected}
    assert len(lengths) > 3 and GREEDY.max_tokens in lengths  # ragged ends, and some that were cut
    for count in (1, 4, 20):
        answers = answer_all(model, count=count)
        assert [answer.index for answer in answers] == list(range(len(LENGTHS)))
        assert agrees(answers, expected), f"{count} slots"


def test_small_prefill_budget_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    monkeypatch.setattr(slots, "PREFILL_TOKENS", 20)
    assert agrees(answer_all(model), referee(model))


def test_answers_come_as_they_end_and_first_token_may_end_them() -> None:
    model = model_of("llama")
    order = [a.index for a in SlotGenerator(model, slots=4).generate(prompts(), GREEDY, STOPS)]
    assert sorted(order) == list(range(len(LENGTHS))) != order
    (first,) = in_order(SlotGenerator(model).generate(prompts()[:1], GREEDY, frozenset(range(96))))
    assert first.ids == [] and first.stopped
    (cut,) = in_order(SlotGenerator(model).generate(prompts()[:1], Decoding(max_tokens=1), frozenset()))
    assert len(cut.ids) == 1 and not cut.stopped
    assert list(SlotGenerator(model).generate([], GREEDY, STOPS)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_log_probability_is_that_of_a_full_forward(kind: str) -> None:
    model = model_of(kind, torch.float64)
    expected = referee(model)
    model.set_attn_implementation("sdpa")
    exact = []
    for prompt, ids in zip(prompts(), expected, strict=True):
        logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[
            0, len(prompt) - 1 : -1
        ]
        exact.append(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum().item())
    model.set_attn_implementation(ATTENTION)
    answers = answer_all(model)
    assert max(abs(answer.logprob - value) for answer, value in zip(answers, exact, strict=True)) < 1e-10


def test_slots_auto_is_what_fits() -> None:
    model = model_of("llama", torch.float64)
    automatic = in_order(SlotGenerator(model).generate(prompts(), GREEDY, STOPS))
    assert draws(automatic) == draws(answer_all(model))
    token = (
        2
        * 2
        * 8
        * model.config.num_hidden_layers
        * model.config.num_key_value_heads
        * model.config.head_dim
        // 2
    )
    assert room.slots_that_fit(model, 1000, 64, 2048, None) == room.MOST_ON_CPU
    assert room.slots_that_fit(model, 5, 64, 2048, None) == 5
    longer = room._CPU_CACHE // (3 * token)
    assert room.slots_that_fit(model, 1000, longer, 2048, None) == 3
    assert room.slots_that_fit(model, 1000, 100 * longer, 2048, None) == 1


def test_a_model_with_more_heads_than_the_kernel_takes_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: Any) -> Tensor:
        raise ValueError("more query heads to a key head than the kernel takes")

    wide = {"num_attention_heads": 32, "num_key_value_heads": 1, "hidden_size": 128, "head_dim": 4}
    model = tiny("llama", attention=register(), **wide)
    expected = draws(answer_all(model))
    with_one = dataclasses.replace(kernels_for(model.device), decode_attention=refuses)
    monkeypatch.setattr(cache, "kernels_for", lambda device: with_one)
    assert draws(answer_all(model)) == expected
    with pytest.raises(ValueError, match="than the kernel takes"):
        answer_all(model_of("llama"))


class Memory(TorchDispatchMode):
    """The most bytes that tensors made meanwhile hold together."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor) and (memory := one.untyped_storage()).data_ptr() not in self.held:
                self.held[memory.data_ptr()] = memory.nbytes()
                weakref.finalize(memory, self.held.pop, memory.data_ptr(), None)
        self.most = max(self.most, sum(self.held.values()))
        return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.7, 1.0), (0.7, 0.9)])
def test_memory_to_choose_a_token_is_planned_for(
    temperature: float, top_p: float, dtype: torch.dtype
) -> None:
    answers, words = 8, 32_000
    logits, zeros = torch.randn(answers, words).to(dtype), torch.zeros(answers, dtype=torch.int64)
    bits = torch.zeros(answers, words // 32, dtype=torch.int32)
    with Memory() as memory:
        held = logits.masked_fill(
            (bits[:, :, None] >> torch.arange(32, dtype=torch.int32) & 1).flatten(1) == 0, -torch.inf
        )
        choose(logits, temperature, top_p, zeros, zeros, held)
    taken = memory.most / logits.numel() + dtype.itemsize
    planned = bytes_a_logit(temperature, top_p)
    assert taken <= planned <= 2 * taken


def test_draws_leave_room_for_fewer_answers_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = room.slots_that_fit

    def asking(*arguments: Any) -> int:
        asked.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(slots, "slots_that_fit", asking)
    model = model_of("llama")
    for decoding in (GREEDY, SAMPLED):
        list(SlotGenerator(model).generate(prompts(), decoding, STOPS))
    assert asked == [bytes_a_logit(0, 1), bytes_a_logit(SAMPLED.temperature, SAMPLED.top_p)]


SAMPLED = Decoding(max_tokens=12, temperature=1.5, top_p=0.9, seed=5, samples=2)


def draws(answers: list[Generated]) -> list[tuple[int, int, list[int]]]:
    return [(answer.index, answer.sample, answer.ids) for answer in answers]


def test_samples_depend_on_nothing_but_seed_prompt_sample_and_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("llama", torch.float64)
    answers = answer_all(model, SAMPLED)
    assert len(answers) == 2 * len(LENGTHS)
    for count in (1, 3, 26):
        assert draws(answer_all(model, SAMPLED, count)) == draws(answers)
    few = in_order(SlotGenerator(model).generate(prompts()[:5], SAMPLED, STOPS))
    assert draws(few) == draws(answers)[:10]
    others = answer_all(model, dataclasses.replace(SAMPLED, seed=6))
    assert sum(a.ids != b.ids for a, b in zip(answers, others, strict=True)) > 20
    assert sum(a.ids != b.ids for a, b in zip(answers[::2], answers[1::2], strict=True)) > 10
    # a generator whose draws follow the slot instead of the prompt would be seen
    monkeypatch.setattr(slots, "stream_key", lambda seed, prompt, sample: seed)
    assert draws(answer_all(model, SAMPLED)) != draws(answers)


def test_the_rest_of_a_stopped_run_draws_as_the_whole() -> None:
    model = model_of("llama", torch.float64)
    whole = answer_all(model, SAMPLED)
    done = {(answer.index, answer.sample) for answer in whole[::3]} | {(4, 0), (4, 1)}
    rest = in_order(SlotGenerator(model, slots=4).generate(prompts(), SAMPLED, STOPS, done=done))
    kept = [answer for answer in whole if (answer.index, answer.sample) not in done]
    assert draws(rest) == draws(kept)
    # prompts numbered anew, without those that are done, would draw other numbers
    left = [prompts()[index] for index in sorted({answer.index for answer in kept})]
    renumbered = in_order(SlotGenerator(model, slots=4).generate(left, SAMPLED, STOPS))
    assert [a.ids for a in renumbered][-2:] != [a.ids for a in whole][-2:]
    assert (
        list(SlotGenerator(model).generate(prompts()[:2], SAMPLED, STOPS, {(0, 0), (0, 1), (1, 0), (1, 1)}))
        == []
    )


def test_a_recipe_says_how_many_and_within_what() -> None:
    model = model_of("llama")
    recipe = Recipe.model_validate({"name": "a", "model": {"base": "b"}, "data": {"train": "c"}})
    assert (SlotGenerator.of(model, recipe).slots, SlotGenerator.of(model, recipe).memory) == ("auto", None)
    changed = {"train": {"memory": 6}, "evaluate": {"batch": 3}}
    asked = SlotGenerator.of(model, Recipe.model_validate(recipe.model_dump(by_alias=True) | changed))
    assert (asked.slots, asked.memory) == (3, 6.0)


def test_the_key_names_the_weights() -> None:
    key = SlotGenerator(model_of("llama")).key
    assert SlotGenerator(model_of("llama"), slots=3).key == key  # loaded again
    assert SlotGenerator(model_of("llama", torch.bfloat16)).key != key
    assert SlotGenerator(model_of("llama_tied")).key != key
    model = model_of("llama")
    add_lora(model, Tune(rank=4), seed=0)
    generator = SlotGenerator(model)
    keys = {key, generator.key}
    with adapters_off(model):
        keys.add(generator.key)
    with torch.no_grad():
        adapters(model)[-1].B.add_(1e-6)
    keys.add(generator.key)
    assert len(keys) == 4


def test_random_numbers() -> None:
    """Pinned, so that a seed gives the same answers in every version; and evenly spread."""
    key = sampling.stream_key(5, 7, 1)
    assert key == 69652430
    first = sampling.uniform(torch.tensor([key, key]), torch.tensor([0, 1]))
    assert first.tolist() == [0.45641487366505873, 0.10765656639467291]
    words = [0, 1, 2**31, 2**32 - 1, 123456789]
    assert sampling._mix(torch.tensor(words)).tolist() == [sampling._mix_int(word) for word in words]
    keys = torch.tensor([sampling.stream_key(0, prompt, 0) for prompt in range(300)])
    many = sampling.uniform(keys.repeat_interleave(200), torch.arange(200).repeat(300))
    assert many.min() >= 0 and many.max() < 1 and len(many.unique()) == len(many)
    shares = torch.histc(many.float(), bins=20, min=0, max=1) / len(many)
    assert (shares - 0.05).abs().max() < 5 * (0.05 * 0.95 / len(many)) ** 0.5
    square = many.view(300, 200)
    for shifted in (square[:, 1:] * square[:, :-1], square[1:] * square[:-1]):  # neighbours are independent
        assert abs(shifted.mean().item() - 0.25) < 5 * (7 / 144 / shifted.numel()) ** 0.5


def test_draws_follow_the_distribution_and_the_nucleus() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 40) * 2
    count = 40_000
    keys, positions = torch.full((count,), sampling.stream_key(1, 2, 0)), torch.arange(count)
    for temperature, top_p in ((0.7, 1.0), (1.3, 0.8)):
        chosen, logprob = sampling.choose(logits.expand(count, -1), temperature, top_p, keys, positions)
        warped = logits / temperature
        if top_p < 1:
            warped = TopPLogitsWarper(top_p)(torch.zeros(1, 1), warped)
        p = warped.softmax(-1)[0]
        shares = torch.bincount(chosen, minlength=40) / count
        assert shares[p == 0].sum() == 0
        assert ((shares - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all()
        assert torch.allclose(logprob, logits.log_softmax(-1)[0, chosen])


def test_a_prompt_without_room_is_refused() -> None:
    model = model_of("llama")
    assert SlotGenerator(model).room == 256 and SlotGenerator(model, max_length=40).room == 40
    with pytest.raises(ModelError, match="prompt 4 has 30 tokens, with 12 for the answer more than the 41"):
        list(SlotGenerator(model, max_length=41).generate(prompts(), GREEDY, STOPS))
    exact = SlotGenerator(model, max_length=42).generate(prompts(), GREEDY, STOPS)
    assert agrees(in_order(exact), referee(model))
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        list(SlotGenerator(model).generate([[5], []], GREEDY, STOPS))
    with pytest.raises(TypeError, match="eager"):
        SlotGenerator(tiny("llama"))


def test_output_that_is_not_finite_is_no_answer() -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[95] = torch.nan
    with pytest.raises(NotFinite, match="prompt 1"):
        list(SlotGenerator(model).generate([[5, 6], [5, 95], [6, 5]], Decoding(max_tokens=3), STOPS))


def test_training_modes_are_put_back() -> None:
    model = model_of("llama")
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    answers = SlotGenerator(model, slots=2).generate(prompts(), GREEDY, STOPS)
    next(answers)
    assert not any(module.training for module in model.modules()) and torch.is_grad_enabled()
    answers.close()  # type: ignore[attr-defined]
    assert [module.training for module in model.modules()] == before
