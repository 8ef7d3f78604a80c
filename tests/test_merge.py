"""Merging from file to file, against PEFT's own merge and against the arithmetic; and the files it writes."""

from __future__ import annotations

import json
import math
import subprocess
import weakref
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_tiny
from torch import Tensor
from transformers import AutoModelForCausalLM

from tunesmith.base import Base, resolve
from tunesmith.errors import ModelError, OutOfRoom
from tunesmith.model.adapter import save_adapter
from tunesmith.model.load import load_model
from tunesmith.model.lora import adapters, add_lora
from tunesmith.model.merge import Delta, merge_weights, merged_type, merged_weight, read_deltas
from tunesmith.model.shards import Entry, write_shards
from tunesmith.model.tensors import StoredTensors
from tunesmith.model.weights import quantized
from tunesmith.recipe import Model, Tune

TUNE = Tune(rank=4, alpha=8)


def make(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.bfloat16, tune: Tune = TUNE) -> Base:
    """A base in `base`, stored in `dtype`, and a random adapter for it in `adapter`."""
    write_tiny(folder / "base", kind)
    stored = {name: tensor.to(dtype) for name, tensor in load_file(folder / "base/model.safetensors").items()}
    save_file(stored, folder / "base/model.safetensors", metadata={"format": "pt"})
    base = resolve(Model(base=str(folder / "base")))
    model = load_model(base, dtype=dtype)
    add_lora(model, tune, seed=0)
    torch.manual_seed(1)
    for adapter in adapters(model):
        adapter.B.data.normal_(0.0, 0.1)
    save_adapter(model, folder / "adapter", "base", tune)
    return base


def merged(base: Base, out: Path, **more: object) -> dict[str, Tensor]:
    """The tensors of a merge of `adapter`, beside the base, into bf16 files."""
    out.mkdir()
    deltas = read_deltas(base.folder.parent / "adapter")
    merge_weights(base, deltas, out, **{"dtype": torch.bfloat16, **more})  # type: ignore[arg-type]
    files = sorted(out.glob("*.safetensors"))
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


# ---- the numbers


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "tune",
    [TUNE, Tune(rank=4, alpha=3, rslora=True), Tune(rank=2, alpha=5, target_modules=("o_proj", "up_proj"))],
    ids=["all", "rslora", "two targets"],
)
def test_equals_pefts_merge_in_fp32(tmp_path: Path, kind: str, tune: Tune) -> None:
    base = make(tmp_path, kind, tune=tune)
    found = merged(base, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    referee = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    stored = load_file(base.folder / "model.safetensors")
    assert set(found) == set(stored)
    changed = 0
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        wanted = referee[name].to(torch.bfloat16)
        # fp32 sums in another order may fall on the other side of a rounding
        assert (tensor != wanted).float().mean() < 1e-3
        torch.testing.assert_close(tensor, wanted, rtol=2**-7, atol=1e-6)
        changed += not torch.equal(tensor, stored[name])
    assert changed == (14 if tune.target_modules == "all" else 4)


def test_rounds_once_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    base = make(tmp_path, "llama_tied")
    found, stored = merged(base, tmp_path / "merged"), load_file(base.folder / "model.safetensors")
    deltas = read_deltas(tmp_path / "adapter")
    for name, tensor in found.items():
        delta = deltas.get(name.removesuffix(".weight"))
        if delta is None:
            assert torch.equal(tensor, stored[name])
            continue
        exact = stored[name].double() + delta.scaling * delta.B.double() @ delta.A.double()
        ulp = torch.finfo(torch.bfloat16).eps * 2 ** exact.abs().log2().floor()
        assert ((tensor.double() - exact).abs() <= ulp / 2 + 1e-7).all()  # 1e-7: of the fp32 sum itself
    assert "lm_head.weight" not in found


def test_an_fp32_base_becomes_16_bit_in_one_step(tmp_path: Path) -> None:
    base = make(tmp_path, dtype=torch.float32)
    found, stored = merged(base, tmp_path / "merged"), load_file(base.folder / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    name = "model.layers.1.mlp.up_proj"
    delta = read_deltas(tmp_path / "adapter")[name]
    assert torch.equal(
        found[f"{name}.weight"], merged_weight(stored[f"{name}.weight"], delta, torch.bfloat16)
    )
    twice = merged_weight(stored[f"{name}.weight"].bfloat16(), delta, torch.bfloat16)
    assert not torch.equal(found[f"{name}.weight"], twice)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_dequantized_source_is_the_image_that_training_saw(tmp_path: Path, how: str) -> None:
    tune = Tune(rank=4, alpha=8, target_modules=("q_proj", "v_proj"))
    base = make(tmp_path, tune=tune)
    found = merged(base, tmp_path / "merged", source="dequantized", quantize=how, trained_in=torch.bfloat16)
    stored, deltas = load_file(base.folder / "model.safetensors"), read_deltas(tmp_path / "adapter")
    in_training = load_model(base, dtype=torch.bfloat16, quantize=how)
    for name, tensor in found.items():
        linear = name.removesuffix(".weight")
        if linear.endswith("_proj"):  # all linears of the layers, with an adapter or without
            image = in_training.get_submodule(linear).weight.dequantize(torch.bfloat16)  # type: ignore[union-attr, operator]
            assert not torch.equal(image, stored[name])
            wanted = merged_weight(image, deltas[linear], torch.bfloat16) if linear in deltas else image
        else:
            wanted = stored[name]
        assert torch.equal(tensor, wanted), name


def test_a_headless_checkpoint_keeps_its_names(tmp_path: Path) -> None:
    base = make(tmp_path, "llama_tied")
    stored = load_file(base.folder / "model.safetensors")
    save_file(
        {name.removeprefix("model."): tensor for name, tensor in stored.items()},
        base.folder / "model.safetensors",
    )
    found = merged(base, tmp_path / "merged")
    name = "layers.0.mlp.down_proj.weight"
    assert not torch.equal(found[name], stored[f"model.{name}"])
    assert torch.equal(found["embed_tokens.weight"], stored["model.embed_tokens.weight"])


def test_type_of_the_merged_model(tmp_path: Path) -> None:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    wanted = {
        (bf16, bf16): bf16, (bf16, fp16): fp16, (bf16, fp32): bf16,  # (stored, trained in)
        (fp16, bf16): bf16, (fp16, fp16): fp16, (fp16, fp32): fp16,
        (fp32, bf16): bf16, (fp32, fp16): fp16, (fp32, fp32): bf16,
    }  # fmt: skip
    for (stored, trained_in), dtype in wanted.items():
        folder = tmp_path / f"{stored}-{trained_in}"
        assert merged_type(make(folder, dtype=stored), trained_in) == dtype


def test_numbers_outside_fp16_are_refused(tmp_path: Path) -> None:
    base = make(tmp_path, dtype=torch.float32)
    stored = load_file(base.folder / "model.safetensors")
    stored["model.norm.weight"][3] = 1e6
    save_file(stored, base.folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight does not fit into float16"):
        merged(base, tmp_path / "merged", dtype=torch.float16)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base = make(tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    delta = read_deltas(tmp_path / "adapter")[name]
    for wrong, said in (
        ({"model.layers.7.mlp.up_proj": delta}, "nowhere"),
        ({name: Delta(delta.A[:, :-1], delta.B, 1.0)}, r"\[64, 63\], the base's \[64, 64\]"),
    ):
        with pytest.raises(ModelError, match=said):
            merge_weights(base, wrong, tmp_path, dtype=torch.bfloat16)


# ---- the files


def test_transformers_reads_the_shards(tmp_path: Path) -> None:
    base = make(tmp_path)
    found = merged(base, tmp_path / "merged", shard_bytes=30_000)
    files = sorted((tmp_path / "merged").glob("*.safetensors"))
    assert len(files) > 5
    largest = max(tensor.nbytes for tensor in found.values())
    assert all(path.stat().st_size <= max(30_000, largest) + 10_000 for path in files)
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    (tmp_path / "merged/config.json").write_bytes((base.folder / "config.json").read_bytes())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make(tmp_path)
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    read = StoredTensors.read

    def watched(self: StoredTensors, name: str) -> Tensor:
        nonlocal most
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(one() is not None for one in alive))
        return tensor

    monkeypatch.setattr(StoredTensors, "read", watched)
    merged(base, tmp_path / "merged")
    assert len(alive) == len(StoredTensors(base))
    assert most == 1


def test_written_files_are_safetensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(3, dtype=torch.int64),
        "b": torch.randn(5, 3, dtype=torch.bfloat16),
        "c": torch.tensor(2.5),
        "d": torch.zeros(0, 4),
        "e": torch.randn(4, 6).t(),  # not contiguous
        "f": torch.tensor([True, False, True]),
    }
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    sums = write_shards(tmp_path, entries, tensors.__getitem__)
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    said = subprocess.run(["sha256sum", tmp_path / "model.safetensors"], capture_output=True, text=True)
    assert sums == {"model.safetensors": said.stdout.split()[0]}
    header = (tmp_path / "model.safetensors").read_bytes()[:8]
    assert int.from_bytes(header, "little") % 8 == 0


def test_a_tensor_that_became_another_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="became"):
        write_shards(tmp_path, [Entry("a", torch.float32, (3,))], lambda _: torch.zeros(4))


def test_no_room_is_said_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 100})())
    with pytest.raises(OutOfRoom, match="GiB"):
        write_shards(tmp_path, [Entry("a", torch.float32, (1000,))], lambda _: torch.zeros(1000))
    assert not list(tmp_path.iterdir())


def test_scaling_is_the_adapters(tmp_path: Path) -> None:
    for tune, scaling in ((TUNE, 2.0), (Tune(rank=4, alpha=3, rslora=True), 3 / math.sqrt(4))):
        make(tmp_path / str(scaling), tune=tune)
        assert {delta.scaling for delta in read_deltas(tmp_path / str(scaling) / "adapter").values()} == {
            scaling
        }


def test_requantising_would_lose_the_adapter() -> None:
    """Why nothing here merges into 4 bits: the product disappears in the steps of the grid."""
    torch.manual_seed(0)
    weight = quantized(torch.randn(128, 128) * 0.05, "nf4").dequantize(torch.float32)
    delta = Delta(torch.randn(4, 128) * 0.01, torch.randn(128, 4) * 0.01, 2.0)
    whole = merged_weight(weight, delta, torch.float32)
    again = quantized(whole, "nf4").dequantize(torch.float32)
    kept = ((again - weight) * (whole - weight)).sum() / (whole - weight).square().sum()
    lost = (again - whole).norm() / (whole - weight).norm()
    assert kept < 0.9
    assert lost > 1
