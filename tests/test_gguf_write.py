"""GGUF files of tiny models: llama.cpp computes Hugging Face's logits from them, and from no mutant of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gguf import MODELS, TinyFolder, hugging_face_logits, llama_cpp_logits, random_rows, tiny_folder
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.export.gguf import architecture, file, tensors, values, write
from tunesmith.export.gguf.write import write_gguf
from tunesmith.generate.llama_cpp.file import read_gguf

ROWS = random_rows(2040, [31, 200, 1, 7])
LIMIT = 1e-3


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A mutant: the attribute is another one inside the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def distance(made: TinyFolder, path: Path) -> float:
    return float((hugging_face_logits(made.model, ROWS) - llama_cpp_logits(path, ROWS)).abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_hugging_faces_logits(tmp_path: Path, name: str, llama_cpp: Any) -> None:
    made = tiny_folder(tmp_path / "m", name)
    write_gguf(made.folder, tmp_path / "m.gguf", "F32", made.contract)
    assert distance(made, tmp_path / "m.gguf") < LIMIT


def _no_biases(original: Callable[..., Any]) -> Callable[..., Any]:
    def plan(*arguments: Any) -> Any:
        return [one for one in original(*arguments) if not one.name.endswith(".bias")]

    return plan


def _wrong_eps(original: Callable[..., Any]) -> Callable[..., Any]:
    def read(*arguments: Any) -> Any:
        found = original(*arguments)
        found.config.rms_norm_eps = 1e-2
        return found

    return read


def _shorter_factors(self: Any) -> Tensor:
    return torch.ones(self.head_dim // 2)


@pytest.mark.parametrize(
    "name, owner, attribute, mutant",
    [
        ("llama", file, "permuted", lambda rows, _: rows),
        ("llama_biases", write, "plan", _no_biases(tensors.plan)),
        ("qwen2", tensors, "permuted_heads", lambda arch, name: arch.heads if ".q_proj." in name else 0),
        ("llama31", architecture.Architecture, "rope_factors", _shorter_factors),
        ("llama", write, "read_architecture", _wrong_eps(architecture.read_architecture)),
        ("qwen3", write, "read_architecture", _wrong_eps(architecture.read_architecture)),
    ],
)
def test_mutants_compute_something_else(
    tmp_path: Path, name: str, owner: Any, attribute: str, mutant: Any, llama_cpp: Any
) -> None:
    made = tiny_folder(tmp_path / "m", name)
    with changed(owner, attribute, mutant):
        write_gguf(made.folder, tmp_path / "m.gguf", "F32", made.contract)
    assert distance(made, tmp_path / "m.gguf") > 10 * LIMIT


def test_sliding_window_limits_the_context(tmp_path: Path) -> None:
    made = tiny_folder(tmp_path / "m", "mistral", sliding_window=100)
    write_gguf(made.folder, tmp_path / "m.gguf", "F16", made.contract)
    assert read_gguf(tmp_path / "m.gguf").size("context_length") == 100


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", values.KINDS)
def test_values_are_those_of_the_gguf_package(stored: torch.dtype, kind: str) -> None:
    from gguf import GGMLQuantizationType, quants

    x = torch.randn(64, 320, generator=torch.Generator().manual_seed(1)) * 3
    x[0], x[1, :32] = 0, torch.tensor([0.5, -0.5, 127.0, -127.0] * 8)
    x = x.to(stored)
    wanted = quants.quantize(x.float().numpy(), GGMLQuantizationType[kind])
    assert values.encoded(x, kind, "x").numpy().tobytes() == wanted.tobytes()
    assert values.size(kind, x.numel()) == wanted.nbytes


def test_pieces_of_any_size_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_folder(tmp_path / "m", "llama_biases", torch.bfloat16)
    told: list[int] = []
    write_gguf(made.folder, tmp_path / "a.gguf", "F16", made.contract, told.append)
    monkeypatch.setattr(file, "PIECE", 1000)
    (tmp_path / "y").mkdir()
    write_gguf(made.folder, tmp_path / "y" / "a.gguf", "F16", made.contract)
    whole = (tmp_path / "a.gguf").read_bytes()
    assert whole == (tmp_path / "y" / "a.gguf").read_bytes()
    assert 0.9 * len(whole) < sum(told) < len(whole)


def test_shards_are_read_in_place(tmp_path: Path) -> None:
    made = tiny_folder(tmp_path / "m", "qwen3")
    write_gguf(made.folder, tmp_path / "x-F32.gguf", "F32", made.contract)
    made.model.save_pretrained(tmp_path / "s", max_shard_size="200KB")
    assert len(list((tmp_path / "s").glob("*.safetensors"))) > 3
    (tmp_path / "y").mkdir()
    write_gguf(tmp_path / "s", tmp_path / "y" / "x-F32.gguf", "F32", made.contract)
    assert (tmp_path / "y" / "x-F32.gguf").read_bytes() == (tmp_path / "x-F32.gguf").read_bytes()


def _overwrite(folder: Path, name: str, change: Callable[[Tensor], Tensor | None]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    stored = load_file(path)
    new = change(stored.pop(name))
    save_file(stored | ({} if new is None else {name: new}), path, metadata={"format": "pt"})


def _set_config(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def _large(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[3, 5] = value
        return tensor

    return change


GATE = "model.layers.1.mlp.gate_proj.weight"


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda f: _overwrite(f, GATE, lambda _: None), "lack model.layers.1.mlp.gate_proj.weight"),
        (lambda f: _overwrite(f, GATE, lambda t: t[:-1].contiguous()), "config.json speaks of"),
        (lambda f: _overwrite(f, GATE, lambda t: t.to(torch.float64)), "stored as F64"),
        (lambda f: _overwrite(f, GATE, _large(70000.0)), "F16 reaches to 65,504"),
        (lambda f: _overwrite(f, GATE, _large(-3e38)), "F16 reaches to 65,504"),
        (lambda f: _overwrite(f, GATE, _large(float("nan"))), "not finite"),
        (lambda f: _overwrite(f, GATE, _large(float("-inf"))), "not finite"),
        (lambda f: _set_config(f, architectures=["GemmaForCausalLM"]), "GemmaForCausalLM is not among"),
        (lambda f: _set_config(f, num_local_experts=8), "mixture of experts"),
        (lambda f: _set_config(f, hidden_act="gelu"), "hidden_act is 'gelu'"),
        (lambda f: _set_config(f, quantization_config={"quant_method": "gptq"}), "quantised already"),
        (
            lambda f: _set_config(
                f, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            ),
            "of the type 'dynamic'",
        ),
        (lambda f: _set_config(f, attention_bias=True), "lack model.layers.0.self_attn.q_proj.bias"),
        (_pickle, "a pickle"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "not the one that the model was trained with"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), "cut short"),
    ],
)
def test_what_has_no_equal_form_is_refused(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    made = tiny_folder(tmp_path / "m", "llama", torch.float32)
    spoil(made.folder)
    with pytest.raises(ModelError, match=said):
        write_gguf(made.folder, tmp_path / "m.gguf", "F16", made.contract)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".gguf", ".tmp")]


def test_the_largest_that_f16_holds_is_written(tmp_path: Path) -> None:
    made = tiny_folder(tmp_path / "m", "llama")
    _overwrite(made.folder, GATE, _large(65519.0))
    write_gguf(made.folder, tmp_path / "m.gguf", "F16", made.contract)
    from gguf import GGUFReader

    stored = next(
        one for one in GGUFReader(tmp_path / "m.gguf").tensors if one.name == "blk.1.ffn_gate.weight"
    )
    assert float(stored.data[3, 5]) == 65504.0


def test_rows_of_odd_length_have_no_q8_0(tmp_path: Path) -> None:
    made = tiny_folder(tmp_path / "m", "llama", intermediate_size=200)
    with pytest.raises(ModelError, match="multiple of 32"):
        write_gguf(made.folder, tmp_path / "m.gguf", "Q8_0", made.contract)


def test_an_older_file_stays_where_the_new_one_fails(tmp_path: Path) -> None:
    made = tiny_folder(tmp_path / "m", "llama")
    (tmp_path / "m.gguf").write_text("older")
    _overwrite(made.folder, GATE, _large(1e38))
    with pytest.raises(ModelError):
        write_gguf(made.folder, tmp_path / "m.gguf", "F16", made.contract)
    assert (tmp_path / "m.gguf").read_text() == "older"


FULL = """
import shutil
import sys
from pathlib import Path
from tunesmith.contract import Contract
from tunesmith.errors import OutOfRoom
from tunesmith.export.gguf.write import write_gguf

model, full = Path(sys.argv[1]), Path(sys.argv[2])
for looked in (True, False):
    if not looked:  # room that goes while the file is written
        usage = shutil.disk_usage
        shutil.disk_usage = lambda path: usage("/")
    try:
        write_gguf(model, full / "m.gguf", "F32", Contract.load(model))
    except OutOfRoom as error:
        print(error.what)
    print([one.name for one in full.iterdir()])
"""


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    """In a name space of its own, where a file system of 1 MiB can be mounted."""
    made = tiny_folder(tmp_path / "m", "llama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full.py").write_text(FULL)
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}/full"
    script = f"{mount} && {sys.executable} {tmp_path}/full.py {made.folder} {tmp_path}/full"
    try:
        done = subprocess.run(["unshare", "-Urm", "sh", "-c", "mount 2>&1"], capture_output=True, text=True)
        probe = subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode or probe.returncode:
        pytest.skip("no file system may be mounted here")
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert "GiB are free" in lines[0] and "disk is full" in lines[2]
    assert lines[1] == lines[3] == "[]"
