"""GGUF models as generators: against transformers, and against themselves in other company."""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from transformers import LlamaForCausalLM

from tunesmith import starter
from tunesmith.contract import Contract
from tunesmith.errors import ModelError, NotFinite, SetupError
from tunesmith.example import Message
from tunesmith.export.gguf.write import write_gguf
from tunesmith.generate.guide import SchemaGuide
from tunesmith.generate.llama_cpp import LlamaGenerator, LlamaModel
from tunesmith.generate.llama_cpp import library as llama_cpp_library
from tunesmith.generate.llama_cpp.slots import LlamaSlots
from tunesmith.generate.protocol import Decoding, Generated
from tunesmith.generate.slots import SlotGenerator
from tunesmith.model.attention import register
from tunesmith.starter import reports

GREEDY = Decoding(max_tokens=40)
NOISE = 2e-3  # logits of an F32 file against transformers in fp32, and of two batch sizes; measured 2e-4
SCHEMA = {
    "type": "object",
    "properties": {"site": {"type": "string", "enum": ["lung", "none"]}},
    "required": ["site"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, llama_cpp: Any, contract: Contract) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    for kind in ("F32", "F16"):
        write_gguf(starter.base_folder(), folder / f"{kind.lower()}.gguf", kind, contract)
    return folder


def changed(source: Path, out: Path, tensor: str, change: Callable[[Any], Any]) -> Path:
    """A copy with other values in one tensor."""
    shutil.copy(source, out)
    held = GGUFReader(out, "r+")
    (found,) = (one for one in held.tensors if one.name == tensor)
    found.data[:] = change(np.array(found.data))
    held.data.flush()
    return out


@pytest.fixture
def open_model(files: Path) -> Iterator[Callable[..., LlamaModel]]:
    opened = []

    def opener(kind: str = "f32", slots: int = 4, context: int = 512, **more: Any) -> LlamaModel:
        opened.append(LlamaModel.open(files / f"{kind}.gguf", context=context, slots=slots, **more))
        return opened[-1]

    yield opener
    for model in opened:
        model.close()


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract.make(starter.base_folder())


@pytest.fixture(scope="module")
def prompts(contract: Contract) -> list[list[int]]:
    rows = reports.rows("test", 12)
    texts = [str(row["input"]) for row in rows]
    return [contract.prompt_ids([Message("user", text[: 40 + 40 * (i % 4)])]) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def transformers_model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(
        starter.base_folder(), dtype=torch.float32, attn_implementation=register()
    ).eval()


def in_order(answers: Any) -> list[Generated]:
    return sorted(answers, key=lambda one: (one.index, one.sample))


def full_logits(model: LlamaForCausalLM, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        made = torch.cat([model(input_ids=torch.tensor([list(row)])).logits[0] for row in rows])
    model.set_attn_implementation(register())
    return made


def test_logits_are_those_of_transformers(
    open_model: Callable[..., LlamaModel], transformers_model: LlamaForCausalLM
) -> None:
    torch.manual_seed(0)
    rows = [torch.randint(0, 2040, (length,)).tolist() for length in (1, 2, 31, 700)]  # 700: two calls
    exact = full_logits(transformers_model, rows)
    every = [[True] * len(row) for row in rows]
    got = open_model(context=1024).logits(rows, every)
    assert got.dtype == torch.float32 and got.shape == (734, 2048)
    assert float((got - exact).abs().max()) < NOISE
    wide = open_model("f16", context=1024).logits(rows, every)
    assert NOISE < float((wide - exact).abs().max()) < 0.3  # F16 rounds what goes into each product
    wanted = [[place % 3 == 0 for place in range(len(row))] for row in rows]
    some = open_model(context=1024).logits(rows, wanted)
    kept = torch.tensor([mark for marks in wanted for mark in marks])
    assert float((some - got[kept]).abs().max()) < NOISE / 10  # fewer rows in the last product


def halves_to_pairs(values: Any, heads: int) -> Any:
    """llama.cpp turns neighbouring pairs of a head where transformers turns its halves."""
    rows, columns = values.shape
    values = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(values.reshape(rows, columns))


def test_wrong_rotation_is_seen(files: Path, transformers_model: LlamaForCausalLM, tmp_path: Path) -> None:
    wrong = changed(
        files / "f32.gguf", tmp_path / "wrong.gguf", "blk.2.attn_q.weight", lambda q: halves_to_pairs(q, 4)
    )
    row = list(range(5, 36))
    with LlamaModel.open(wrong, context=256, slots=1) as model:
        got = model.logits([row], [[True] * len(row)])
    assert float((got - full_logits(transformers_model, [row])).abs().max()) > 100 * NOISE


def test_greedy_answers_are_those_of_the_transformers_engine(
    open_model: Callable[..., LlamaModel],
    transformers_model: LlamaForCausalLM,
    contract: Contract,
    prompts: list[list[int]],
) -> None:
    expected = in_order(SlotGenerator(transformers_model, 4).generate(prompts, GREEDY, contract.stop_ids))
    assert len({tuple(one.ids) for one in expected}) > 3
    for slots in (1, 4, 16):
        got = in_order(LlamaGenerator(open_model(slots=slots)).generate(prompts, GREEDY, contract.stop_ids))
        assert [(one.ids, one.stopped) for one in got] == [(one.ids, one.stopped) for one in expected]
        distances = [abs(a.logprob - b.logprob) for a, b in zip(got, expected, strict=True)]
        assert max(distances) < 40 * NOISE


def test_draws_mean_the_same_as_in_the_transformers_engine(
    open_model: Callable[..., LlamaModel],
    transformers_model: LlamaForCausalLM,
    contract: Contract,
    prompts: list[list[int]],
) -> None:
    for top_p in (1.0, 0.9):
        drawn = Decoding(max_tokens=12, temperature=0.8, top_p=top_p, seed=3, samples=2)
        args = (prompts[:4], drawn, contract.stop_ids)
        expected = in_order(SlotGenerator(transformers_model, 4).generate(*args))
        got = in_order(LlamaGenerator(open_model()).generate(*args))
        assert [one.ids for one in got] == [one.ids for one in expected]
        assert len({tuple(one.ids) for one in got}) > 3


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_answers_hardly_depend_on_their_company(
    open_model: Callable[..., LlamaModel], contract: Contract, prompts: list[list[int]], kind: str
) -> None:
    """llama.cpp rounds a product of one row otherwise than one of several: the whole difference."""
    alone = in_order(LlamaGenerator(open_model(kind, 1)).generate(prompts, GREEDY, contract.stop_ids))
    other = in_order(LlamaGenerator(open_model(kind, 12)).generate(prompts, GREEDY, contract.stop_ids))
    worst = 0.0
    for a, b in zip(alone, other, strict=True):
        assert a.token_logprobs[0] == b.token_logprobs[0]  # prompts go through alone: bit for bit
        for x, y, one, two in zip(
            [*a.ids, -1], [*b.ids, -1], a.token_logprobs, b.token_logprobs, strict=False
        ):
            if x != y:
                break
            worst = max(worst, abs(one - two))
    assert worst < (NOISE if kind == "f32" else 0.1)
    assert sum(a.ids == b.ids for a, b in zip(alone, other, strict=True)) >= (12 if kind == "f32" else 10)


def test_no_room_and_wrong_calls(open_model: Callable[..., LlamaModel]) -> None:
    model = open_model(context=300)
    assert model.room == 300 and model.width == 2048
    generator = LlamaGenerator(model)
    with pytest.raises(ModelError, match=r"prompt 0 has 290 tokens, with 40"):
        list(generator.generate([[5] * 290], GREEDY, frozenset()))
    with pytest.raises(ModelError, match="301 tokens, more than the 300"):
        model.logits([[5] * 301], [[True] * 301])
    assert LlamaModel.open(model.path, context=10**6 // 64, slots=1).room == 4096  # the trained length


def test_what_is_done_is_left_out_and_an_abandoned_call_frees_its_slots(
    open_model: Callable[..., LlamaModel], contract: Contract, prompts: list[list[int]]
) -> None:
    generator = LlamaGenerator(open_model(slots=2))
    args = (prompts, GREEDY, contract.stop_ids)
    begun = generator.generate(*args)
    first = next(begun)
    begun.close()  # type: ignore[attr-defined]
    rest = list(generator.generate(*args, done={(first.index, 0)}))
    assert sorted(one.index for one in rest) == [i for i in range(len(prompts)) if i != first.index]
    whole = in_order(generator.generate(*args))
    assert [one.ids for one in in_order([first, *rest])] == [one.ids for one in whole]


def test_answers_are_held_to_a_schema(
    open_model: Callable[..., LlamaModel], contract: Contract, prompts: list[list[int]]
) -> None:
    model = open_model()
    text = contract.tokenizer_files["tokenizer.json"].decode()
    guide = SchemaGuide(SCHEMA, text, contract.stop_ids, model.width)
    made = LlamaGenerator(model).generate(prompts[:6], GREEDY, contract.stop_ids, guide=guide)
    for one in made:
        assert one.stopped and json.loads(contract.decode(one.ids))["site"] in ("lung", "none")


def test_output_that_is_not_finite_ends_the_call(
    files: Path, tmp_path: Path, contract: Contract, prompts: list[list[int]]
) -> None:
    broken = changed(files / "f32.gguf", tmp_path / "nan.gguf", "output_norm.weight", lambda x: x * np.nan)
    with (
        LlamaModel.open(broken, context=512, slots=2) as model,
        pytest.raises(NotFinite, match=r"prompt \d+"),
    ):
        list(LlamaGenerator(model).generate(prompts[:3], GREEDY, contract.stop_ids))


def test_adapter_gguf_equals_the_merged_weights(
    files: Path, llama_cpp: Any, tmp_path: Path, transformers_model: LlamaForCausalLM
) -> None:
    delta = write_adapter(tmp_path / "adapter.gguf")
    row = list(range(5, 60))
    with LlamaModel.open(
        files / "f32.gguf", adapter=tmp_path / "adapter.gguf", context=256, slots=2
    ) as model:
        got, key = model.logits([row], [[True] * len(row)]), model.key
    base = full_logits(transformers_model, [row])
    state = {name: value.clone() for name, value in transformers_model.state_dict().items()}
    for name, change in delta.items():
        transformers_model.state_dict()[name] += change
    merged = full_logits(transformers_model, [row])
    transformers_model.load_state_dict(state)
    assert float((got - merged).abs().max()) < NOISE < 0.05 < float((merged - base).abs().max())
    with LlamaModel.open(files / "f32.gguf", context=256, slots=2) as model:
        assert model.key != key
    shutil.copy(files / "f32.gguf", tmp_path / "copy.gguf")
    with LlamaModel.open(tmp_path / "copy.gguf", context=300, slots=1) as other:
        assert other.key == model.key  # where it lies and how much room it has say nothing


def write_adapter(out: Path, rank: int = 4, width: int = 256) -> dict[str, torch.Tensor]:
    """A random adapter over attention; returns what it adds to the base's weights."""
    torch.manual_seed(1)
    writer = GGUFWriter(out, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * rank)
    delta = {}
    for layer in range(4):
        for part, heads in (("q", 4), ("k", 2), ("v", 0)):
            outputs = width * heads // 4 if heads else width // 2
            a, b = torch.randn(rank, width) * 0.05, torch.randn(outputs, rank) * 0.05
            turned = halves_to_pairs(b.numpy(), heads) if heads else b.numpy()
            writer.add_tensor(f"blk.{layer}.attn_{part}.weight.lora_a", a.numpy())
            writer.add_tensor(f"blk.{layer}.attn_{part}.weight.lora_b", turned)
            delta[f"model.layers.{layer}.self_attn.{part}_proj.weight"] = 2.0 * b @ a
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return delta


def test_adapter_of_another_base_is_refused(files: Path, llama_cpp: Any, tmp_path: Path) -> None:
    own, wrong = tmp_path / "own.gguf", tmp_path / "wrong.gguf"
    write_adapter(own)
    write_adapter(wrong, width=512)
    with pytest.raises(ModelError, match="holds an adapter and no model"):
        LlamaModel.open(own, context=256, slots=1)
    with pytest.raises(ModelError, match="holds a model and no adapter"):
        LlamaModel.open(files / "f32.gguf", adapter=files / "f16.gguf", context=256, slots=1)
    with pytest.raises(ModelError, match=r"another base: blk\.\d\.attn_\w\.weight\.lora_\w has \d+ where"):
        LlamaModel.open(files / "f32.gguf", adapter=wrong, context=256, slots=1)


def test_it_is_silent_and_tells_when_it_fails(
    files: Path, llama_cpp: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with LlamaModel.open(files / "f32.gguf", context=256, slots=2) as model:
        model.logits([[5, 6]], [[True, True]])
    said = capfd.readouterr()
    assert said.out == said.err == ""
    strange = tmp_path / "strange.gguf"
    strange.write_bytes((files / "f32.gguf").read_bytes().replace(b"attn_q.weight", b"attn_x.weight", 1))
    with pytest.raises(ModelError, match="can't load this file"):
        LlamaModel.open(strange, context=256, slots=2)
    assert "attn_q.weight" in capfd.readouterr().err


def test_it_works_for_one_at_a_time_and_not_once_closed(
    open_model: Callable[..., LlamaModel], contract: Contract, prompts: list[list[int]]
) -> None:
    model = open_model(slots=2)
    begun = LlamaGenerator(model).generate(prompts, GREEDY, contract.stop_ids)
    next(begun)
    with pytest.raises(RuntimeError, match="at work for another"):
        model.logits([[5]], [[True]])
    model.close()
    with pytest.raises(RuntimeError, match="has been closed"):
        next(begun)
    begun.close()  # type: ignore[attr-defined]
    for call in (lambda: model.logits([[5]], [[True]]), lambda: model.decode([5], [0], [0], [True])):
        with pytest.raises(RuntimeError, match="has been closed"):
            call()
    with pytest.raises(ModelError, match="at most 256 answers side by side, not 1000"):
        open_model(slots=1000)


def test_closing_twice_and_never(open_model: Callable[..., LlamaModel], files: Path) -> None:
    model = open_model()
    model.close()
    model.close()
    forgotten = LlamaModel.open(files / "f32.gguf", context=256, slots=1)
    del forgotten
    gc.collect()


def test_missing_package_names_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    llama_cpp_library.require_llama_cpp.cache_clear()
    with pytest.raises(SetupError, match=r"not installed[\s\S]*pip install 'tunesmith\[llamacpp\]'"):
        llama_cpp_library.require_llama_cpp()
    monkeypatch.undo()
    llama_cpp_library.require_llama_cpp.cache_clear()


def test_answers_in_each_others_slots_are_seen(
    open_model: Callable[..., LlamaModel],
    contract: Contract,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mutant: two answers of equal length change places, which llama.cpp can't notice."""
    pair = [prompts[3], [*prompts[3][:30], *prompts[7][30:40], *prompts[3][40:]]]

    def answers() -> list[Generated]:
        made = LlamaGenerator(open_model(slots=2)).generate(pair, GREEDY, contract.stop_ids)
        return in_order(made)

    sound, step = answers(), LlamaSlots.step

    def crossed(self: LlamaSlots) -> Any:
        if len(self._writing) == 2 and self._writing[0].count == self._writing[1].count == 3:
            a, b = self._writing
            a.slot, b.slot = b.slot, a.slot
        return step(self)

    monkeypatch.setattr(LlamaSlots, "step", crossed)
    mutant = answers()
    assert [one.ids for one in mutant] != [one.ids for one in sound]
    assert all(math.isfinite(one.logprob) for one in mutant)
