"""Angles and reach of a GGUF file: the same as transformers' for each kind of positions; short rows can't tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gguf_write import changed
from tiny_gguf import (
    LLAMA31,
    MODELS,
    TinyFolder,
    hugging_face_logits,
    llama_cpp_logits,
    random_rows,
    tiny_folder,
)

from tunesmith.base import resolve
from tunesmith.export.gguf import architecture
from tunesmith.export.gguf.architecture import Architecture
from tunesmith.export.gguf.write import write_gguf
from tunesmith.export.positions import gguf_positions_equal
from tunesmith.proof import Proof
from tunesmith.recipe import Model

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 256,
        "beta_fast": 16.0, "beta_slow": 2.0}  # fmt: skip
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "window": ("mistral", {"sliding_window": 100}),
    "no window": ("qwen2", {"sliding_window": 100, "use_sliding_window": False}),
    "yarn": ("qwen3", {"rope_parameters": YARN, "max_position_embeddings": 1024}),
}


def proved(folder: Path, name: str) -> tuple[TinyFolder, Path, Proof]:
    kind, config = (MODELS | MORE)[name]
    made = tiny_folder(folder / "m", kind if name in MORE else name, **(config if name in MORE else {}))
    path = folder / "m.gguf"
    write_gguf(made.folder, path, "F32", made.contract)
    return made, path, gguf_positions_equal("gguf-F32", path, resolve(Model(base=str(made.folder))))


@pytest.mark.parametrize("name", [*MODELS, *MORE])
def test_honest_files_pass(tmp_path: Path, name: str) -> None:
    proof = proved(tmp_path, name)[2]
    assert proof.passed and proof.figure < 1e-6, proof.line()


def _with(key: str, value: Any) -> Callable[[Any], Any]:
    """Rope settings in which one is another."""
    return lambda original: lambda *given: original(*given) | {key: value}


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "mutant"),
    [
        ("llama31", architecture, "_rope", _with("factor", 32.0)),
        ("llama31", architecture, "_rope", _with("high_freq_factor", 5.0)),
        ("llama31", Architecture, "rope_factors", lambda _: lambda self: None),
        ("llama_linear", architecture, "_rope", _with("factor", 2.0)),
        ("qwen2_yarn", architecture, "_rope", _with("original_max_position_embeddings", 128)),
        ("yarn", architecture, "_rope", _with("beta_fast", None)),
        ("qwen3", architecture, "_rope", _with("rope_theta", 10001.5)),
        ("window", architecture, "_context", lambda _: lambda config: config.max_position_embeddings),
    ],
)
def test_mutants_fail(tmp_path: Path, name: str, owner: Any, attribute: str, mutant: Any) -> None:
    with changed(owner, attribute, mutant(getattr(owner, attribute))):
        proof = proved(tmp_path, name)[2]
    assert not proof.passed, proof.line()


def test_short_rows_do_not_show_it(tmp_path: Path, llama_cpp: Any) -> None:
    """Llama 3.1's own scaling, left out: logits move by less than F16 files may, and the angles tell."""
    real = LLAMA31 | {"original_max_position_embeddings": 8192}
    made = tiny_folder(tmp_path / "m", "llama31", rope_parameters=real, max_position_embeddings=131072)
    with changed(Architecture, "rope_factors", lambda self: torch.full((self.head_dim // 2,), 1.0)):
        write_gguf(made.folder, tmp_path / "m.gguf", "F32", made.contract)
    rows = random_rows(2040, [12, 16])
    off = hugging_face_logits(made.model, rows) - llama_cpp_logits(tmp_path / "m.gguf", rows)
    assert float(off.square().mean().sqrt()) < 0.01
    assert not gguf_positions_equal(
        "gguf-F32", tmp_path / "m.gguf", resolve(Model(base=str(made.folder)))
    ).passed
