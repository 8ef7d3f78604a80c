"""The adapter alone as GGUF: over the base's GGUF it computes what the adapter computes on the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from test_gguf_write import changed
from tiny_gguf import hugging_face_logits, llama_cpp_logits, random_rows, tiny_folder
from torch import Tensor

from tunesmith.base import Base, resolve
from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.export.gguf import adapter as adapter_module
from tunesmith.export.gguf.adapter import write_adapter_gguf
from tunesmith.export.gguf.write import write_gguf
from tunesmith.model.adapter import save_adapter
from tunesmith.model.dropout import Dropout
from tunesmith.model.load import load_model
from tunesmith.model.lora import adapters, attach, linears
from tunesmith.recipe import Model, Tune

ROWS = random_rows(2040, [31, 100, 1])
LIMIT = 1e-3


class Made(NamedTuple):
    """A base and a strong adapter of it, and logits with and without."""

    base: Base
    adapter: Path
    contract: Contract
    bare: Tensor
    tuned: Tensor


def make(folder: Path, name: str, *, rslora: bool = False, mixed: bool = False) -> Made:
    tiny_one = tiny_folder(folder / "m", name)
    base = resolve(Model(base=str(tiny_one.folder)))
    model = load_model(base, dtype=torch.float32)
    torch.manual_seed(1)
    for number, linear in enumerate(linears(model)):
        own = mixed and number % 3 == 0
        one = attach(model, linear, 8 if own else 4, 24.0 if own else 8.0, rslora, Dropout(0.0))
        with torch.no_grad():
            one.A.normal_(0, 0.1)
            one.B.normal_(0, 0.1)
    assert adapters(model)
    save_adapter(model, folder / "adapter", "base", Tune(rank=4, alpha=8, rslora=rslora))
    bare = hugging_face_logits(tiny_one.model, ROWS)
    live = PeftModel.from_pretrained(tiny_one.model, folder / "adapter").eval()
    return Made(base, folder / "adapter", tiny_one.contract, bare, hugging_face_logits(live, ROWS))


def write(made: Made, folder: Path) -> Tensor:
    """llama.cpp's logits with the adapter."""
    write_gguf(made.base.folder, folder / "m.gguf", "F32", made.contract)
    write_adapter_gguf(made.adapter, made.base, folder / "a.gguf", made.contract)
    return llama_cpp_logits(folder / "m.gguf", ROWS, folder / "a.gguf")


@pytest.mark.parametrize(
    "name, more",
    [
        ("llama", {}),
        ("llama31", {"rslora": True}),
        ("mistral", {}),
        ("qwen2", {"mixed": True}),
        ("qwen3", {}),
        ("llama_tied", {"mixed": True, "rslora": True}),
    ],
)
def test_llama_cpp_applies_it_alike(tmp_path: Path, name: str, more: dict[str, bool], llama_cpp: Any) -> None:
    made = make(tmp_path, name, **more)
    assert (made.tuned - made.bare).abs().max() > 100 * LIMIT
    assert (write(made, tmp_path) - made.tuned).abs().max() < LIMIT


def test_an_unpermuted_b_is_noticed(tmp_path: Path, llama_cpp: Any) -> None:
    made = make(tmp_path, "llama")
    with changed(adapter_module, "permuted_heads", lambda *_: 0):
        assert (write(made, tmp_path) - made.tuned).abs().max() > 10 * LIMIT


def test_a_wrong_scale_is_noticed(tmp_path: Path, llama_cpp: Any) -> None:
    made = make(tmp_path, "llama", rslora=True)
    original = adapter_module.read_adapter

    def plain(folder: Path) -> Any:
        return {name: pair._replace(rslora=False) for name, pair in original(folder).items()}

    with changed(adapter_module, "read_adapter", plain):
        assert (write(made, tmp_path) - made.tuned).abs().max() > 10 * LIMIT


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path, "llama")
    other = tiny_folder(tmp_path / "other", "llama", intermediate_size=256)
    out = tmp_path / "a.gguf"
    with pytest.raises(ModelError, match="in the adapter and"):
        write_adapter_gguf(made.adapter, resolve(Model(base=str(other.folder))), out, made.contract)
    shallow = tiny_folder(tmp_path / "shallow", "llama", num_hidden_layers=1)
    with pytest.raises(ModelError, match="which the base lacks"):
        write_adapter_gguf(made.adapter, resolve(Model(base=str(shallow.folder))), out, made.contract)
    stored = made.contract.to_json() | {"tokenizer_sha256": "0" * 64}
    (made.adapter / "contract.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match="another tokenizer"):
        write_adapter_gguf(made.adapter, made.base, out, made.contract)
    assert not out.exists()


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    made = make(tmp_path, "llama")
    original = adapter_module.read_adapter

    def spoiled(folder: Path) -> Any:
        pairs = original(folder)
        next(iter(pairs.values())).B[0, 0] = float("nan")
        return pairs

    with changed(adapter_module, "read_adapter", spoiled), pytest.raises(ModelError, match="not finite"):
        write_adapter_gguf(made.adapter, made.base, tmp_path / "a.gguf", made.contract)
    assert not (tmp_path / "a.gguf").exists()
