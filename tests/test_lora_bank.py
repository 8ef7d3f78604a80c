"""Several adapters over one base: each token gets its own adapter's numbers, and only those."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import tiny
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.model.adapter import load_adapter, save_adapter
from tunesmith.model.attention import Packed, register
from tunesmith.model.lora import adapters, add_lora, linears
from tunesmith.model.lora_bank import LoraBank
from tunesmith.model.weights import FrozenLinear, quantized
from tunesmith.recipe import Tune

TUNES = {
    "all": Tune(rank=4, alpha=6),
    "some": Tune(rank=8, alpha=24, target_modules=("q_proj", "layers.1.mlp.up_proj")),
    "root": Tune(rank=2, alpha=3, rslora=True, target_modules=("v_proj", "down_proj", "q_proj")),
}
NAMES = ("", *TUNES)
IDS = torch.arange(3, 35)


def base(how: str = "none", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny Llama on our attention, its layers' weights stored as `how` says."""
    model = tiny(dtype=dtype, attention=register())
    for name in linears(model) if how != "none" else ():
        parent, _, leaf = name.rpartition(".")
        linear = model.get_submodule(name)
        setattr(model.get_submodule(parent), leaf, FrozenLinear(quantized(linear.weight.detach(), how)))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters: another rank, other layers, another scale."""
    made = {}
    for seed, (name, tune) in enumerate(TUNES.items()):
        model, made[name] = tiny(), tmp_path_factory.mktemp(name)
        add_lora(model, tune, seed)
        generator = torch.Generator().manual_seed(seed)
        for adapter in adapters(model):
            for parameter in (adapter.A, adapter.B):
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        save_adapter(model, made[name], "some/base", tune)
    return made


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    """[T, V] of one document."""
    edges = torch.tensor([0, len(ids)], dtype=torch.int32)
    places = torch.arange(len(ids))[None]
    found: Tensor = model(ids[None], position_ids=places, attention=Packed(edges, len(ids))).logits
    return found[0]


def alone(name: str, folders: dict[str, Path], how: str, dtype: torch.dtype) -> Tensor:
    """What LoraLinear says."""
    model = base(how, dtype)
    if name:
        load_adapter(model, folders[name])
    return logits(model)


CASES = [(how, dtype) for how in ("none", "nf4", "int8") for dtype in (torch.float32, torch.bfloat16)]
CASES += [("none", torch.float64), ("none", torch.float16)]


@pytest.mark.parametrize(("how", "dtype"), CASES, ids=str)
def test_one_adapter_is_lora_linear_bit_by_bit(
    how: str, dtype: torch.dtype, folders: dict[str, Path]
) -> None:
    for name in TUNES:
        model = base(how, dtype)
        bank = LoraBank(model, {name: folders[name]})
        assert not adapters(model) and not any(one.requires_grad for one in model.parameters())
        assert torch.equal(logits(model), alone("", folders, how, dtype))  # outside `use` it is the base
        with bank.use([name] * len(IDS)):
            assert torch.equal(logits(model), alone(name, folders, how, dtype))
        with bank.use([""] * len(IDS)):
            assert torch.equal(logits(model), alone("", folders, how, dtype))


# of logits up to 4: the sum over the ranks of all adapters may go in another order, and be rounded otherwise
# (measured here: 0 in 16-bit types and fp64, at most 6.3e-6 in fp32)
LIMITS = {torch.float64: 1e-13, torch.float32: 1.5e-5, torch.bfloat16: 0.06, torch.float16: 0.01}


@pytest.mark.parametrize(("how", "dtype"), CASES, ids=str)
def test_each_of_several_answers_as_alone(how: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    model = base(how, dtype)
    bank = LoraBank(model, folders)
    for name in NAMES:
        with bank.use([name] * len(IDS)):
            off = (logits(model) - alone(name, folders, how, dtype)).abs().max().item()
        assert off <= LIMITS[dtype], (name, off)


def layer_of(model: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    found: Callable[[Tensor], Tensor] = model.get_submodule(name)
    return found


def worst(bank: LoraBank, model: PreTrainedModel, folders: dict[str, Path]) -> float:
    """Largest distance of any token of a mixed stream, in any layer, from its own adapter alone; fp64."""
    order = [NAMES[i * 7 % 4] for i in range(29)]
    x = torch.randn(29, 128, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    off = 0.0
    for layer in linears(base()):
        of_model = {name: base(dtype=torch.float64) for name in NAMES}
        for name in TUNES:
            load_adapter(of_model[name], folders[name])
        into = x[:, : layer_of(model, layer).in_features]  # type: ignore[attr-defined]
        wanted = torch.stack([layer_of(of_model[name], layer)(into)[t] for t, name in enumerate(order)])
        with torch.no_grad(), bank.use(order):
            off = max(off, (layer_of(model, layer)(into[None])[0] - wanted).abs().max().item())
    return off


EXACT = 1e-13


def test_a_stream_of_all_of_them(folders: dict[str, Path]) -> None:
    model = base(dtype=torch.float64)
    assert worst(LoraBank(model, folders), model, folders) <= EXACT


def _wrong_scale(bank: LoraBank) -> None:
    for layout, table in bank._tables.items():
        if len(layout) > 1:
            table[layout[1].number] *= layout[0].scaling / layout[1].scaling


def _shifted(bank: LoraBank) -> None:
    use = bank.use
    bank.use = lambda which: use([which[-1], *which[:-1]])  # type: ignore[method-assign,assignment]


def _neighbour(bank: LoraBank) -> None:
    """An adapter that lacks a layer reads what its neighbour has there."""
    for table in bank._tables.values():
        for number in range(1, len(table)):
            if not table[number].any():
                table[number] = table[number - 1 or 2]


def _shifted_columns(bank: LoraBank) -> None:
    for layout, table in bank._tables.items():
        if len(layout) > 1:
            table.copy_(table.roll(1, 1))


@pytest.mark.parametrize("mutant", [_wrong_scale, _shifted, _neighbour, _shifted_columns])
def test_mutants(mutant: Callable[[LoraBank], None], folders: dict[str, Path]) -> None:
    model = base(dtype=torch.float64)
    bank = LoraBank(model, folders)
    mutant(bank)
    assert worst(bank, model, folders) > 1e6 * EXACT


def test_the_tensor_is_read_when_the_layers_run(folders: dict[str, Path]) -> None:
    """`use` on the same tensor after it was written to is another adapter: what a replayed graph relies on."""
    model = base()
    bank = LoraBank(model, folders)
    which = torch.zeros(len(IDS), dtype=torch.int64)
    for name in ("some", "", "root", "all"):
        which.fill_(bank.index(name))
        with bank.use(which):
            found = logits(model)
        with bank.use([name] * len(IDS)):
            assert torch.equal(found, logits(model))


@pytest.mark.gpu
def test_a_captured_graph_follows_the_tensor(folders: dict[str, Path]) -> None:
    model = base(dtype=torch.bfloat16).to("cuda")
    bank = LoraBank(model, folders)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    x = torch.randn(16, 64, device="cuda", dtype=torch.bfloat16)
    which = torch.zeros(16, dtype=torch.int64, device="cuda")

    def step() -> Tensor:
        with torch.no_grad(), bank.use(which):
            y: Tensor = layer(x)
            return y

    for _ in range(3):
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    for shift in range(4):
        which.copy_((torch.arange(16, device="cuda") + shift) % 4)
        graph.replay()
        assert torch.equal(y, step())


def test_a_token_too_many_is_a_bug(folders: dict[str, Path]) -> None:
    model = base()
    bank = LoraBank(model, folders)
    with bank.use(["all"] * (len(IDS) - 1)), pytest.raises(ValueError, match="31 tokens have adapters, 32"):
        logits(model)
    assert torch.equal(logits(model), logits(base()))


def test_unknown_names(folders: dict[str, Path]) -> None:
    bank = LoraBank(base(), folders)
    assert [bank.index(name) for name in ("", "all", "some", "root")] == [0, 1, 2, 3]
    with pytest.raises(ModelError, match="no adapter 'roott'; did you mean 'root'"):
        bank.index("roott")


def test_an_adapter_of_another_base_changes_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    other = tiny(num_hidden_layers=3)
    add_lora(other, Tune(rank=4), 0)
    save_adapter(other, tmp_path / "deeper", "x", Tune())
    wide = tiny(intermediate_size=192)
    add_lora(wide, Tune(rank=4), 0)
    save_adapter(wide, tmp_path / "wider", "x", Tune())
    model = base()
    for name, words in (("deeper", r"layers\.2\..*does not have"), ("wider", "needs")):
        with pytest.raises(ModelError, match=words):
            LoraBank(model, folders | {"other": tmp_path / name})
        assert torch.equal(logits(model), logits(base()))
        assert all(type(model.get_submodule(one)) is nn.Linear for one in linears(model))


def test_broken_files(folders: dict[str, Path], tmp_path: Path) -> None:
    config = (folders["all"] / "adapter_config.json").read_text()
    weights = (folders["all"] / "adapter_model.safetensors").read_bytes()

    def folder(name: str, text: str, content: bytes | None, file: str = "adapter_model.safetensors") -> Path:
        made = tmp_path / name
        made.mkdir()
        (made / "adapter_config.json").write_text(text)
        if content is not None:
            (made / file).write_bytes(content)
        return made

    for place, words in {
        folder("pickle", config, weights, "adapter_model.bin"): "pickle",
        folder("half", config, weights[: len(weights) // 2]): "cut short",
        folder("nothing", config, b""): "cut short",
        folder("json", config[:30], weights): "can't be read",
        folder("list", json.dumps([config]), weights): "can't be read",
    }.items():
        with pytest.raises(ModelError, match=words):
            LoraBank(base(), {"broken": place})
