"""Reading ahead by threads gives the bytes that lie in the files, in order, in bounded memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_load import base_of
from tiny_models import write_tiny
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith.errors import ModelError
from tunesmith.model import tensors as stored
from tunesmith.model.load import load_model
from tunesmith.model.stream import Place, stream
from tunesmith.model.tensors import StoredTensors

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny(tmp_path, max_shard_size="40KB")
    draw = torch.Generator().manual_seed(0)
    odd = {
        "a scalar": torch.tensor(7.5, dtype=torch.float64),
        "bytes": torch.randint(0, 256, (4099,), dtype=torch.uint8, generator=draw),
        "nothing": torch.empty(0, 3),
        "half": torch.randn(33, 65, generator=draw).half(),
        "truth": torch.randint(0, 2, (70,), generator=draw).bool(),
    }
    save_file(odd, tmp_path / "odd.safetensors")
    (tmp_path / "model.safetensors.index.json").unlink()
    return tmp_path


@pytest.mark.parametrize("piece", [13, 4096, 1 << 24])
@pytest.mark.parametrize("ahead", [0, 5000, 1 << 28])
def test_the_bytes_are_those_of_the_files(folder: Path, piece: int, ahead: int) -> None:
    tensors = StoredTensors(base_of(folder))
    names = [name for name in tensors if piece > 100 or tensors.read(name).numel() < 5000]
    places = tensors.places(names)
    assert places is not None and len(names) > 5
    whole = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    for name, found in zip(names, stream(places, CPU, piece=piece, ahead=ahead), strict=True):
        assert found.dtype == whole[name].dtype and torch.equal(found, whole[name]), name


def test_the_loaded_model_is_bit_by_bit_the_one_read_tensor_by_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA loads it, here onto the CPU."""
    for kind in ("llama", "llama_tied", "qwen2"):
        write_tiny(tmp_path / kind, kind)
        for how in ("none", "nf4"):
            one_by_one = load_model(base_of(tmp_path / kind), dtype="bfloat16", quantize=how)
            with monkeypatch.context() as patch:
                patch.setattr(StoredTensors, "read_all", _as_on_cuda)
                ahead = load_model(base_of(tmp_path / kind), dtype="bfloat16", quantize=how)
            told, found = one_by_one.state_dict(), ahead.state_dict()
            assert list(told) == list(found) and len(told) > 20
            assert all(torch.equal(told[name], found[name]) for name in told)


def _as_on_cuda(self: StoredTensors, names: Any, device: torch.device) -> Any:
    places = self.places(names)
    assert places is not None
    return stored.stream(places, device)


class Watch(TorchDispatchMode):
    """Keeps an eye on what `empty` makes in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[weakref.ref[torch.Tensor], int]] = []
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.empty.memory_format:
            self.made.append((weakref.ref(out), out.nbytes))
            self.peak = max(self.peak, self.alive)
        return out

    @property
    def alive(self) -> int:
        return sum(size for one, size in self.made if one() is not None)


@pytest.mark.parametrize("ahead", [0, 3000, 10_000])
def test_no_more_than_the_bound_lies_ahead(tmp_path: Path, ahead: int) -> None:
    path, size = tmp_path / "raw", 1000
    path.write_bytes(bytes(range(40)) * size)
    places = [Place(path, i * size, torch.uint8, (size,)) for i in range(40)]
    held, watch = 0, Watch()
    with watch:
        for tensor in stream(places, CPU, ahead=ahead):
            held = max(held, watch.alive - size)  # without the one in hand
            del tensor
    assert len(watch.made) >= 40  # buffers are made in other threads
    assert watch.peak == max(ahead, size) and held == max(ahead - size, 0)


def test_a_tensor_larger_than_the_bound_comes_alone(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(range(256)) * 40)
    places = [Place(path, at, torch.uint8, (size,)) for at, size in ((0, 10), (10, 9000), (9010, 30))]
    found = list(stream(places, CPU, piece=1000, ahead=100))
    assert [len(one) for one in found] == [10, 9000, 30]
    assert bytes(torch.cat(found).tolist()) == path.read_bytes()[:9040]


def test_a_file_that_was_cut_since_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(b"12345")
    with pytest.raises(ModelError, match="cut short"):
        list(stream([Place(path, 0, torch.uint8, (6,))], CPU))


def test_leaving_early_closes_the_files(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(1000))
    places = [Place(path, 0, torch.uint8, (100,)) for _ in range(50)]
    reading = stream(places, CPU, piece=10, ahead=300)
    next(reading)
    before = _open_files(path)
    reading.close()
    assert before == 1 and _open_files(path) == 0


def _open_files(path: Path) -> int:
    return sum(link.resolve() == path.resolve() for link in Path("/proc/self/fd").iterdir())
