"""Quantised kinds and importance matrices: real widths, or a refusal; a matrix that helps; never half a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_gguf_write import changed
from tiny_gguf import TinyFolder, llama_cpp_logits, random_rows, tiny_folder
from torch import Tensor, nn

from tunesmith import starter
from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.example import Message
from tunesmith.export.gguf import imatrix as imatrix_module
from tunesmith.export.gguf import quantize
from tunesmith.export.gguf.imatrix import read_imatrix, write_imatrix
from tunesmith.export.gguf.kinds import QUANTISED, Kind
from tunesmith.export.gguf.quantize import quantize_gguf
from tunesmith.export.gguf.write import write_gguf
from tunesmith.generate.llama_cpp.file import read_gguf
from tunesmith.starter.reports import rows


class Starter(NamedTuple):
    """The starter as F16, its contract, rows to weigh with and other rows to measure on."""

    file: Path
    matrix: Path
    contract: Contract
    training: list[list[int]]
    other: list[list[int]]


def _rows(contract: Contract, split: str, count: int) -> list[list[int]]:
    made = []
    for row in rows(split, count):
        turns = [Message("user", row["input"]), Message("assistant", json.dumps(row["output"]))]
        made.append(contract.tokens_of(contract.render(turns, answer_next=False)))
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Starter:
    folder = tmp_path_factory.mktemp("starter")
    base = starter.base_folder()
    contract = Contract.make(base)
    write_gguf(base, folder / "s-F16.gguf", "F16", contract)
    training, other = _rows(contract, "train", 60), _rows(contract, "validation", 30)
    write_imatrix(base, training, folder / "s.imatrix.gguf")
    return Starter(folder / "s-F16.gguf", folder / "s.imatrix.gguf", contract, training, other)


def divergence(small: Starter, path: Path) -> float:
    """Mean KL of the F16 file's next-token distribution to that of `path`, on rows that no matrix has seen."""
    exact, found = (
        torch.log_softmax(llama_cpp_logits(p, small.other).double(), 1) for p in (small.file, path)
    )
    return float((exact.exp() * (exact - found)).sum(1).mean())


@pytest.mark.parametrize("kind", QUANTISED)
def test_every_kind_has_its_own_widths(tmp_path: Path, small: Starter, kind: str, llama_cpp: Any) -> None:
    quantize_gguf(small.file, tmp_path / "q.gguf", kind)
    made, source = read_gguf(tmp_path / "q.gguf"), read_gguf(small.file)
    types = quantize._type_names(made)
    inner = [types[name] for name in types if name.startswith("blk.") and "norm" not in name]
    assert set(inner) <= {QUANTISED[kind].own, *QUANTISED[kind].wider}
    assert inner.count(QUANTISED[kind].own) >= len(inner) / 4
    assert types["token_embd.weight"] == "Q6_K"
    kept = {key: value for key, value in source.metadata.items() if key.startswith("tokenizer.")}
    assert {key: made.metadata[key] for key in kept} == kept
    assert list(tmp_path.iterdir()) == [tmp_path / "q.gguf"]


@pytest.mark.parametrize("kind", ["Q2_K", "Q4_K_M", "IQ4_XS"])
def test_an_importance_matrix_brings_the_file_nearer(
    tmp_path: Path, small: Starter, kind: str, llama_cpp: Any
) -> None:
    quantize_gguf(small.file, tmp_path / "without.gguf", kind)
    quantize_gguf(small.file, tmp_path / "with.gguf", kind, small.matrix)
    upside_down = {name: 1 / values.clip(1e-6) for name, values in read_imatrix(small.matrix).items()}
    with changed(quantize, "read_imatrix", lambda _: upside_down):
        quantize_gguf(small.file, tmp_path / "mutant.gguf", kind, small.matrix)
    without, weighed, mutant = (
        divergence(small, tmp_path / f"{n}.gguf") for n in ("without", "with", "mutant")
    )
    assert weighed < 0.95 * without
    assert mutant >= 0.95 * without  # the same test fails for it


def test_the_matrix_is_the_mean_square_of_each_linears_inputs(tmp_path: Path) -> None:
    made = tiny_folder(tmp_path / "m", "qwen2")
    rows = random_rows(2040, [50, 3, 17])
    write_imatrix(made.folder, [*rows, []], tmp_path / "i.gguf")
    found = read_imatrix(tmp_path / "i.gguf")
    seen: list[Tensor] = []
    down = made.model.get_submodule("model.layers.1.mlp.down_proj")
    assert isinstance(down, nn.Linear)
    down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].detach()))
    for row in rows:
        made.model(input_ids=torch.tensor([row]), use_cache=False)
    wanted = torch.cat(seen).double().square().mean(0).float().numpy()
    np.testing.assert_allclose(found["blk.1.ffn_down.weight"], wanted, rtol=1e-4)
    assert len(found) == 14


def _f16(folder: Path, name: str, **sizes: Any) -> tuple[TinyFolder, Path]:
    made = tiny_folder(folder / "m", name, **sizes)
    write_gguf(made.folder, folder / "m-F16.gguf", "F16", made.contract)
    return made, folder / "m-F16.gguf"


WIDE = {"hidden_size": 256, "intermediate_size": 512}


@pytest.mark.parametrize("sizes", [{"hidden_size": 128}, WIDE | {"intermediate_size": 704}])
def test_rows_that_blocks_do_not_fit_are_refused(
    tmp_path: Path, sizes: dict[str, int], llama_cpp: Any
) -> None:
    _, source = _f16(tmp_path, "llama", **sizes)
    for kind in ("Q4_K_M", "IQ4_NL"):
        with pytest.raises(ModelError, match="multiple of 256"):
            quantize_gguf(source, tmp_path / "q.gguf", kind)
    assert not (tmp_path / "q.gguf").exists()


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_without_the_first_check_the_second_one_finds_the_fallback(
    tmp_path: Path, name: str, llama_cpp: Any
) -> None:
    _, source = _f16(tmp_path, name, **(WIDE | {"intermediate_size": 704}))
    with (
        changed(quantize, "_require_blocks", lambda *_: None),
        pytest.raises(ModelError, match=r"(ffn_down|attn_output)\.weight the type Q[58]_0"),
    ):
        quantize_gguf(source, tmp_path / "q.gguf", "Q4_K_M")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".q", "q"))]


def test_what_is_quantised_is_not_quantised_again(tmp_path: Path, small: Starter, llama_cpp: Any) -> None:
    quantize_gguf(small.file, tmp_path / "q.gguf", "Q6_K")
    with pytest.raises(ModelError, match="Q6_K already"):
        quantize_gguf(tmp_path / "q.gguf", tmp_path / "p.gguf", "Q4_K_M")


def test_the_matrix_of_another_model_is_refused(tmp_path: Path, small: Starter, llama_cpp: Any) -> None:
    made, source = _f16(tmp_path, "llama", **WIDE)
    with pytest.raises(ModelError, match="doesn't fit this model"):
        quantize_gguf(source, tmp_path / "q.gguf", "Q4_K_M", small.matrix)
    for broken in (source, tmp_path / "m" / "config.json"):
        with pytest.raises(ModelError, match="importance matrix"):
            quantize_gguf(source, tmp_path / "q.gguf", "Q4_K_M", broken)
    with pytest.raises(ModelError, match="no training rows"):
        write_imatrix(made.folder, [], tmp_path / "i.gguf")


def test_llama_cpps_own_words_are_told(tmp_path: Path, small: Starter, llama_cpp: Any) -> None:
    unknown = QUANTISED | {"Q4_K_M": Kind(9999, "Q4_K", frozenset())}
    with changed(quantize, "QUANTISED", unknown), pytest.raises(ModelError, match="could not quantise"):
        quantize_gguf(small.file, tmp_path / "q.gguf", "Q4_K_M")
    assert list(tmp_path.iterdir()) == []


def test_half_a_source_is_refused(tmp_path: Path, small: Starter, llama_cpp: Any) -> None:
    (tmp_path / "half.gguf").write_bytes(small.file.read_bytes()[:3_000_000])
    with pytest.raises(ModelError, match="not whole"):
        quantize_gguf(tmp_path / "half.gguf", tmp_path / "q.gguf", "Q4_K_M")


def test_rows_share_streams_without_seeing_each_other(tmp_path: Path) -> None:
    made = tiny_folder(tmp_path / "m", "qwen3")
    rows = random_rows(2040, [40, 30, 20, 10])
    write_imatrix(made.folder, rows, tmp_path / "i.gguf")
    with changed(imatrix_module, "_TOKENS", 1):
        write_imatrix(made.folder, rows, tmp_path / "j.gguf")
    together, alone = read_imatrix(tmp_path / "i.gguf"), read_imatrix(tmp_path / "j.gguf")
    for name, values in together.items():
        np.testing.assert_allclose(values, alone[name], rtol=1e-4)
