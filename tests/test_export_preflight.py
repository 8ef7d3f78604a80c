"""What export would refuse is refused before training: tools, widths, tokenizers, disk and memory."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import recipe, write_byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tunesmith import pipeline
from tunesmith.base import Base, resolve
from tunesmith.contract import Contract
from tunesmith.errors import ModelError, OutOfRoom, RecipeError, SetupError, TunesmithError
from tunesmith.example import Example
from tunesmith.export import preflight, sizes
from tunesmith.export.preflight import require_exportable
from tunesmith.recipe import Recipe
from tunesmith.recipe_evaluate import Decoding, Evaluate
from tunesmith.rows import write_rows
from tunesmith.run import Run

Usage = namedtuple("Usage", "total used free")


def recipe_for(base: str = "starter", tune: Any = None, model: Any = None, **export: Any) -> Recipe:
    return recipe(model={"base": base, "dtype": "float32"} | (model or {}), tune=tune or {}, export=export)


def base_of(made: Recipe) -> Base:
    return resolve(made.model)


def narrow(folder: Path, width: int = 96) -> Path:
    write_byte_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=262, hidden_size=width, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_a_sound_plan_passes_and_is_told(tmp_path: Path, llama_cpp: Any) -> None:
    made = recipe_for(gguf=["F16", "Q4_K_M"], quantized=["nf4"], adapter_gguf=True)
    base = base_of(made)
    items = require_exportable(made, base, tmp_path, contract=Contract.make(base.folder))
    names = [item.name for item in items]
    assert {"merged", "nf4", "GGUF F16", "GGUF Q4_K_M", "GGUF of the adapter"} <= set(names)


def test_sizes_are_those_of_files(tmp_path: Path) -> None:
    """Of the weights that are there, and of the quantised folder that is really written."""
    from tunesmith.export.quantized import write_quantized

    made = recipe_for()
    base = base_of(made)
    numbers = sizes.numbers_of(base)
    weights = sum(path.stat().st_size for path in base.weight_files)
    assert 2 * numbers.all == pytest.approx(weights, rel=0.02)
    write_quantized(base.folder, tmp_path, "nf4", dtype=torch.bfloat16)
    written = (tmp_path / "model.safetensors").stat().st_size
    assert sizes.model_bytes(base, "nf4") == pytest.approx(written, rel=0.05)


def test_k_quants_that_would_fall_back_are_refused(tmp_path: Path, llama_cpp: Any) -> None:
    made = recipe_for(str(narrow(tmp_path / "narrow")), gguf=["Q4_K_M"])
    with pytest.raises(ModelError, match="multiple of 256") as caught:
        require_exportable(made, base_of(made), tmp_path)
    assert "Q8_0" in str(caught.value.fix)
    fits = recipe_for(str(tmp_path / "narrow"), gguf=["Q8_0"])
    require_exportable(fits, base_of(fits), tmp_path)


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path, llama_cpp: Any) -> None:
    made = recipe_for(gguf=["F16"])
    folder = Path(shutil.copytree(base_of(made).folder, tmp_path / "base"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "..?"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    other = recipe_for(str(folder), gguf=["F16"])
    with pytest.raises(ModelError, match="cuts text"):
        require_exportable(other, base_of(other), tmp_path, contract=Contract.make(folder))


@pytest.mark.parametrize(("window", "fits"), [(None, True), (96, True), (64, False)])
def test_rows_that_are_longer_than_a_file_reaches_are_refused(
    tmp_path: Path, llama_cpp: Any, window: int | None, fits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """GGUF can't say a sliding window: a file ends where the window does, and it has to answer the scored rows."""
    config = MistralConfig(
        vocab_size=262, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, sliding_window=window,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(write_byte_tokenizer(tmp_path / "base"))
    made = recipe_for(str(tmp_path / "base"), gguf=["F16"])
    made = made.model_copy(update={"evaluate": Evaluate(decoding=Decoding(max_tokens=8))})
    contract, run = Contract.make(tmp_path / "base", template="llama3"), Run(tmp_path / "tiny")
    row = Example.make("x", "y", id="a")
    row = Example.make("x" * (70 - len(contract.prompt_ids(row.prompt))), "y", id="a")
    for split in ("train", "test"):
        write_rows(run.data, split, [(row, contract.encode(row))])
    if fits:
        require_exportable(made, base_of(made), tmp_path, contract=contract, run=run)
        told = " ".join(capsys.readouterr().err.split())
        assert ("looks back over 96 tokens only" in told) is (window is not None)
        return
    with pytest.raises(ModelError, match="has 64 positions, and the longest scored prompt takes 69"):
        require_exportable(made, base_of(made), tmp_path, contract=contract, run=run)


def test_a_missing_tool_is_named_with_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise SetupError("llama-cpp-python is not installed", fix="pip install 'tunesmith[llamacpp]'")

    monkeypatch.setattr(preflight, "require_llama_cpp", missing)
    made = recipe_for(gguf=["F16"])
    with pytest.raises(SetupError, match="pip install") as caught:
        require_exportable(made, base_of(made), tmp_path)
    assert caught.value.where == "export.gguf"


def test_too_small_a_disk_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(1, 1, 100 << 20))
    made = recipe_for()
    with pytest.raises(OutOfRoom, match="of disk") as caught:
        require_exportable(made, base_of(made), tmp_path)
    assert caught.value.exit_code == 2


def test_too_little_memory_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os, "sysconf", lambda _: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = recipe_for()
    with pytest.raises(OutOfRoom, match="to be proved"):
        require_exportable(made, base_of(made), tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tune": {"method": "full"}, "adapter_gguf": True}, "makes no adapter"),
        ({"imatrix": True, "gguf": ["F16"]}, "below 8 bits"),
        ({"ollama": {}}, "export.gguf names none"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    made = recipe_for(**given)
    with pytest.raises(RecipeError, match=said):
        require_exportable(made, base_of(made), tmp_path)


@pytest.mark.parametrize(
    ("system", "template", "said"),
    [
        ('Say """so""".', "auto", "three quotation marks"),
        ("Be kind.", "{{ messages | length }}", "Ollama can't write"),
        ("Be kind.", "auto", None),
    ],
)
def test_what_a_modelfile_cannot_hold_is_refused(
    tmp_path: Path, llama_cpp: Any, system: str, template: str, said: str | None
) -> None:
    made = recipe_for(gguf=["F16"], ollama={})
    base = base_of(made)
    contract = Contract.make(base.folder, system=system)
    if template != "auto":
        path = tmp_path / "counts.jinja"
        path.write_text(contract.template + template)
        contract = Contract.make(base.folder, system=system, template=str(path))
    if said is None:
        require_exportable(made, base, tmp_path, contract=contract)
        return
    with pytest.raises(ModelError, match=said):
        require_exportable(made, base, tmp_path, contract=contract)


def test_a_run_to_its_end_is_stopped_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained; a run that stops before export is not asked."""
    done: list[str] = []

    def refuse(recipe: Recipe, run: Run) -> None:
        raise TunesmithError("no room")

    stages = tuple(
        pipeline.Stage(name, lambda r, run, name=name: done.append(name), lambda r, run: {})
        for name in pipeline.NAMES
    )
    monkeypatch.setattr(pipeline, "STAGES", stages)
    monkeypatch.setattr(pipeline, "_require_exportable", refuse)
    with pytest.raises(TunesmithError, match="no room"):
        pipeline.advance(recipe_for(), Run(tmp_path / "a"))
    assert done == ["prepare"]
    pipeline.advance(recipe_for(), Run(tmp_path / "b"), until="evaluate")
    assert done == ["prepare", "prepare", "train", "evaluate"]
