"""What lies around the steps, on a card: weights read ahead, adapters drawn on the device, a checkpoint's copy."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fused_warm import recipe_for
from test_load import base_of
from tiny_models import write_tiny
from torch import nn

from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_warm import warm_up
from tunesmith.engine.protocol import pack_sequences
from tunesmith.model.dropout import Dropout
from tunesmith.model.load import load_model
from tunesmith.model.lora import LoraLinear, add_lora
from tunesmith.model.stream import Place, stream
from tunesmith.model.tensors import StoredTensors
from tunesmith.model.weights import FrozenLinear
from tunesmith.train.checkpoint import Checkpoints

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("how", ["none", "nf4", "int8"])
def test_weights_read_ahead_are_those_read_one_by_one(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path, max_shard_size="40KB")
    ahead = load_model(base_of(tmp_path), dtype="bfloat16", quantize=how, device="cuda").state_dict()

    def plainly(self: StoredTensors, names: Any, device: torch.device) -> Any:
        return (self.read(name).to(device) for name in names)

    monkeypatch.setattr(StoredTensors, "read_all", plainly)
    told = load_model(base_of(tmp_path), dtype="bfloat16", quantize=how, device="cuda").state_dict()
    assert list(ahead) == list(told) and len(told) > 20
    assert all(value.is_cuda and torch.equal(ahead[name], value) for name, value in told.items())


def test_pieces_keep_their_order_beside_running_work_and_memory_its_bound(tmp_path: Path) -> None:
    """Each tensor is changed as soon as it comes, and its memory is used again at once."""
    size, count, ahead = 40 << 20, 48, 160 << 20
    path = tmp_path / "raw"
    numbers = torch.arange(size // 4, dtype=torch.int32)
    with path.open("wb") as file:
        for i in range(count):
            file.write((numbers * (i + 1)).numpy().tobytes())
    places = [Place(path, i * size, torch.int32, (size // 4,)) for i in range(count)]
    told, wrong = numbers.cuda(), torch.zeros((), dtype=torch.int64, device=CUDA)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, begin = torch.cuda.memory_allocated(), time.monotonic()
    for i, tensor in enumerate(stream(places, CUDA, ahead=ahead)):
        wrong += (tensor.sub_(told * (i + 1)) != 0).sum()
        tensor.fill_(-1)
        del tensor
    assert int(wrong) == 0
    seconds = time.monotonic() - begin
    print(f"\n{count * size / seconds / 1e9:.1f} GB/s from the page cache onto the card")
    assert torch.cuda.max_memory_allocated() - before < ahead + 4 * size  # the comparison takes its own


def test_adapters_drawn_on_the_card_are_the_cpus_bit_by_bit() -> None:
    for into in (7, 4096, 14336):
        drawn = []
        for device in ("cpu", "cuda"):
            linear = FrozenLinear.over(nn.Linear(into, 8, bias=False, device=device))
            adapter = LoraLinear(f"layers.0.{into}", linear, 16, 32.0, False, Dropout(0.0))
            adapter.initialize(3)
            assert adapter.A.device.type == device
            drawn.append(adapter.A.detach().cpu())
        assert torch.equal(*drawn) and drawn[0].abs().max() > 0


def test_a_checkpoint_is_the_state_at_its_step_while_the_card_works_on(tmp_path: Path) -> None:
    """Of an 8B model's LoRA: 504 MB. The originals change at once."""
    start = torch.arange(42_000_000).remainder(1 << 20).float()
    flat = start.cuda()
    moments = {
        "0.m": torch.ones_like(flat),
        "0.v": torch.full_like(flat, 2.0),
        "0.step": torch.ones((), device=CUDA),
    }
    weights = {str(i): part for i, part in enumerate(flat.chunk(448))}
    checkpoints = Checkpoints(tmp_path, run="r", keep=2)
    with checkpoints:
        for step in (1, 2):
            torch.cuda.synchronize()
            begin = time.monotonic()
            checkpoints.save({"step": step}, {"weights": weights, "optimizer": moments}, None)
            returned = time.monotonic() - begin
            for tensor in (flat, *moments.values()):
                tensor.add_(1.0)
            checkpoints.wait()
            print(
                f"\nstep {step}: training stood {returned:.3f} s, written after {time.monotonic() - begin:.2f} s"
            )
            found = checkpoints.newest()
            assert found is not None and found.step == step
            told = start + (step - 1)
            saved = found.tensors("weights")
            assert torch.equal(torch.cat([saved[str(i)] for i in range(448)]), told)
            assert torch.equal(found.tensors("optimizer")["0.v"], torch.full_like(told, 1.0 + step))
            assert float(found.tensors("optimizer")["0.step"]) == step
        held = list(checkpoints._host.values())
        assert len(held) == 451 and all(one.is_pinned() for one in held)
    assert not checkpoints._host
    assert returned < 0.3


def test_after_the_warm_up_a_step_compiles_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tiny(tmp_path)
    recipe, base = recipe_for(tmp_path, "nf4"), base_of(tmp_path)
    with warm_up(recipe, base, CUDA):
        model = load_model(base, dtype="bfloat16", quantize="nf4", device=CUDA)
    assert "not compiled ahead" not in capfd.readouterr().err
    compiled = _compiled()
    assert compiled > 5
    add_lora(model, recipe.tune, recipe.seed)
    engine = FusedEngine(model, recipe)
    for lengths in ((30, 34), (25, 12), (16, 32, 16)):
        ids = [[*range(1, length + 1)] for length in lengths]
        engine.step(pack_sequences(ids, [[True] * n for n in lengths], [*range(len(ids))], step=1), scale=1.0)
    torch.cuda.synchronize()
    assert _compiled() == compiled


def _compiled() -> int:
    """Kernels of ours that Triton holds for this card, by their specialisations."""
    from triton.runtime.jit import JITFunction

    rooms = [module for name, module in sys.modules.items() if name.startswith("tunesmith.kernels.")]
    found = {id(one): one for room in rooms for one in vars(room).values() if isinstance(one, JITFunction)}
    return sum(len(caches[0]) for one in found.values() for caches in one.device_caches.values())
