"""Models by name on other engines: GGUF files with adapters, and vLLM behind the same names."""

# ruff: noqa: F401, F811  (fixtures)

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from exported_run import make_exported_run
from test_served_models import TOKENS, all_of, alone, answer, of_run, runs

from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.export.gguf.adapter import write_adapter_gguf
from tunesmith.export.gguf.write import write_gguf
from tunesmith.recipe import Model
from tunesmith.serve.models import ServedModels
from tunesmith.starter import base_folder


def test_a_gguf_file(runs: Path, tmp_path: Path, llama_cpp: Any) -> None:
    file = tmp_path / "small.gguf"
    write_gguf(base_folder(), file, "Q8_0", Contract.make(base_folder()))
    models = ServedModels(str(file), {}, "auto", runs, slots=3, context=64)
    assert models.names() == ("small",)
    served = asyncio.run(models.get("small"))
    assert served.engine == "llama.cpp" and [len(one) for one in answer(served)] == [TOKENS] * 3
    assert served.live._guides._contract() is served.contract  # type: ignore[attr-defined]  # its tokenizer
    models.close()
    with pytest.raises(ModelError, match=r"by llama\.cpp, not by transformers"):
        asyncio.run(ServedModels(str(file), {}, "transformers", runs).get("small"))
    half = tmp_path / "half.gguf"
    half.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    models = ServedModels(str(half), {}, "auto", runs)
    with pytest.raises(ModelError, match="not whole"):
        asyncio.run(models.get("half"))
    assert models.status()[0].state == "failed"


def test_vllm_behind_the_names(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in child process: real vLLM needs a card. Its tokens tell which adapter it was asked for."""
    program = tmp_path / "vllm"
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("vllm_standin.py")} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("TUNESMITH_VLLM", str(program))
    journal = tmp_path / "journal.jsonl"
    monkeypatch.setenv("STANDIN_JOURNAL", str(journal))
    models = ServedModels("tiny", {"second": Path("other")}, "vllm", runs, slots=4, context=64)
    served = asyncio.run(all_of(models, "tiny", "base", "second"))
    assert [one.engine for one in served] == ["vllm"] * 3
    assert len({id(one.live) for one in served}) == 1 and served[0].live.adapters == ("tiny", "second")
    assert [len(answer(one)[0]) for one in served] == [TOKENS] * 3
    models.close()
    told = journal.read_text()
    assert all(str(runs / name / "adapter") in told for name in ("tiny", "other"))
    quantised = runs / "tiny" / "recipe.yaml"
    kept = quantised.read_text()
    lock = (runs / "tiny" / "lock.json").read_text()
    try:
        quantised.write_text(kept.replace("quantize: none", "quantize: nf4"))
        (runs / "tiny" / "lock.json").write_text(
            lock.replace('"model.quantize": "none"', '"model.quantize": "nf4"')
        )
        with pytest.raises(ModelError, match="not from its nf4 image"):
            asyncio.run(ServedModels("tiny", {}, "vllm", runs).get("tiny"))
    finally:
        quantised.write_text(kept)
        (runs / "tiny" / "lock.json").write_text(lock)


def test_adapters_over_a_gguf_file(runs: Path, tmp_path: Path, llama_cpp: Any) -> None:
    """Each with the numbers of its run; fp32 throughout, so greedy answers agree."""
    run = make_exported_run(tmp_path)
    contract, file = Contract.load(run.contract_folder), tmp_path / "small.gguf"
    write_gguf(base_folder(), file, "F32", contract)
    run.gguf.mkdir()
    write_adapter_gguf(run.adapter, resolve(Model(base="starter")), run.gguf / "tiny-adapter.gguf", contract)
    models = ServedModels(str(file), {"tuned": run.path}, "auto", runs, slots=3, context=64)
    assert models.names() == ("small", "tuned")
    own, tuned = asyncio.run(all_of(models, "small", "tuned"))
    assert (tuned.name, tuned.adapter, of_run(tuned)) == ("tuned", "", "tiny")
    parent = run.path.parent
    assert answer(tuned) == alone(parent, "tiny", tuned=True) != answer(own)
    assert answer(own) == alone(parent, "tiny", tuned=False)
    assert {one.name: one.facts["run"] for one in models.status()} == {"small": None, "tuned": str(run.path)}
    models.close()
    with pytest.raises(ModelError, match="has to be a GGUF file too"):
        asyncio.run(ServedModels(str(file), {"x": Path("other")}, "auto", runs).get("x"))
    models = ServedModels("tiny", {"x": run.gguf / "tiny-adapter.gguf"}, "auto", runs)
    with pytest.raises(ModelError, match="is for a GGUF model"):
        asyncio.run(models.get("tiny"))
