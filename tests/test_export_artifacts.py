"""Stage export beyond merged/: honest things pass for several seeds and kinds; loss, stops, and what is made again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import recipe, reports
from transformers import AutoModelForCausalLM

from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.errors import ProofFailed
from tunesmith.export import artifact_proofs, artifacts, folder, record
from tunesmith.export.export import export
from tunesmith.export.folder import write_sums
from tunesmith.export.measure import folder_model, logits, proof_rows
from tunesmith.export.proofs import spread
from tunesmith.model.adapter import save_adapter
from tunesmith.model.load import load_model
from tunesmith.model.lora import adapters, add_lora
from tunesmith.model.weights import FrozenLinear
from tunesmith.recipe import Recipe, Tune
from tunesmith.rows import Rows, write_rows
from tunesmith.run import Run
from tunesmith.starter import base_folder
from tunesmith.statistics import Interval

TRAIN, TEST = reports(6, seed=1, name="train"), reports(4, seed=3, name="test")
SMALL = 0.01  # steps far below those of NF4
TUNE = {"rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def base() -> Path:
    """The starter: 256 wide, so that K-quants are what their names say, and of a vocabulary that llama.cpp reads."""
    return base_folder()


def recipe_for(base: Path, dtype: str = "float32", **export: Any) -> Recipe:
    model = {"base": str(base), "dtype": dtype}
    evaluate = {"batch": 4, "decoding": {"max_tokens": 4}}
    return recipe(model=model, evaluate=evaluate, tune=TUNE, export=export)


def qlora_recipe(base: Path, **export: Any) -> Recipe:
    model = {"base": str(base), "dtype": "bfloat16", "quantize": "nf4"}
    evaluate = {"batch": 4, "decoding": {"max_tokens": 4}}
    return recipe(model=model, evaluate=evaluate, tune=TUNE, export=export)


def write_adapter(base: Path, folder: Path, seed: int = 1, strength: float = 0.03) -> None:
    model = load_model(resolve(recipe_for(base).model), dtype="float32")
    add_lora(model, Tune(**TUNE), seed=seed)
    torch.manual_seed(seed)
    for adapter in adapters(model):
        adapter.B.data.normal_(0.0, strength)
    save_adapter(model, folder, str(base), Tune(**TUNE))


def new_run(base: Path, folder: Path, seed: int = 1) -> Run:
    run = Run(folder)
    contract = Contract.make(base)
    contract.save(run.contract_folder, run.contract_folder / "tokenizer")
    for split, rows in (("train", TRAIN), ("test", TEST)):
        write_rows(run.data, split, [(row, contract.encode(row)) for row in rows])
    write_adapter(base, run.adapter, seed)
    return run


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Run:
    return new_run(base, tmp_path / "tiny")


def outcomes(run: Run) -> dict[str, bool]:
    return {proof["name"]: proof["passed"] for proof in run.proofs()}


def checked(folder: Path) -> set[str]:
    """Names in SHA256SUMS, once sha256sum agrees."""
    said = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout
    return {line.partition(":")[0] for line in said.stdout.splitlines()}


# ---- honest things


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_quantised_folders_are_proved_for_several_seeds(base: Path, tmp_path: Path, seed: int) -> None:
    run = new_run(base, tmp_path / "tiny", seed)
    export(recipe_for(base, "float32" if seed else "bfloat16", quantized=["nf4", "int8"]), run)
    assert all(outcomes(run).values())
    for kind in ("nf4", "int8"):
        assert {f"{kind}_equals_quantised_in_memory", f"{kind}_keeps_adapter"} <= set(outcomes(run))
        assert {"config.json", "contract.json", "model.safetensors"} <= checked(run.quantized / kind)
        lines = (run.predictions / f"{kind}.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [row.id for row in TEST]
    assert "adapter_model.safetensors" in checked(run.adapter)
    assert not list(run.path.glob(".export*"))


@pytest.mark.parametrize("merged", [True, False])
def test_nf4_of_an_adapter_trained_on_nf4_keeps_it(base: Path, tmp_path: Path, merged: bool) -> None:
    """Of the merge into the base's own weights: each step of a QLoRA is far below NF4's."""
    run = new_run(base, tmp_path / "tiny")
    write_adapter(base, run.adapter, strength=SMALL)
    asked = qlora_recipe(base, merged=merged, quantized=["nf4"])
    export(asked, run)
    if merged:
        shutil.rmtree(run.quantized / "nf4")
        export(asked, run)  # merged/ stands: the other merge is made again for it
    told = json.loads((run.quantized / "nf4" / "merge.json").read_text())
    assert told["source"] == "original"
    (kept,) = (proof for proof in run.proofs() if proof["name"] == "nf4_keeps_adapter")
    assert 0.7 < kept["figure"] < 1.4 and all(outcomes(run).values())
    assert not list(run.path.glob(".export*"))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_transformers_loads_quantised_folders_unchanged(base: Path, run: Run, kind: str) -> None:
    export(recipe_for(base, quantized=[kind]), run)
    model = AutoModelForCausalLM.from_pretrained(run.quantized / kind, dtype=torch.bfloat16)
    assert model.is_quantized
    rows = proof_rows(Rows.open(run.data, "test"), [0])
    ours = logits(folder_model(run.quantized / kind, torch.bfloat16, torch.device("cpu")), rows)
    dense = logits(folder_model(run.merged, torch.bfloat16, torch.device("cpu")), rows)
    with torch.no_grad():
        theirs = model(torch.tensor([rows.ids[0]])).logits[0].float()
    positions = [t - 1 for t, learned in enumerate(rows.learned[0]) if learned]
    off, lost = spread(theirs[positions], ours), spread(ours, dense)
    limit = 0.25 * lost if kind == "nf4" else 1.5 * spread(rounded_inputs(run, rows), ours)
    assert off < max(limit, 0.03)


def rounded_inputs(run: Run, rows: Any) -> torch.Tensor:
    """bitsandbytes rounds what comes into an 8-bit linear to 8 bits too, but for columns beyond 6; ours does not."""
    model = folder_model(run.quantized / "int8", torch.bfloat16, torch.device("cpu"))

    def to_8_bits(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0].float()
        wide = (x.abs() > 6).reshape(-1, x.shape[-1]).any(0)
        narrow = x.masked_fill(wide, 0)
        scale = narrow.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
        return ((narrow / scale).round() * scale + x.masked_fill(~wide, 0)).to(inputs[0].dtype), *inputs[1:]

    for module in model.modules():
        if isinstance(module, FrozenLinear):
            module.register_forward_pre_hook(to_8_bits)
    return logits(model, rows)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_stored_bytes_are_those_that_transformers_writes(
    base: Path, run: Run, kind: str, tmp_path: Path
) -> None:
    from transformers import BitsAndBytesConfig

    export(recipe_for(base, quantized=[kind]), run)
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(**(four if kind == "nf4" else {"load_in_8bit": True}))
    model = AutoModelForCausalLM.from_pretrained(run.merged, quantization_config=config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = load_file(run.quantized / kind / "model.safetensors")
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        if "quant_state" in name:  # JSON, ours filled up with blanks
            told = json.loads(bytes(ours[name].tolist()))
            assert told["shape"] == json.loads(bytes(tensor.tolist()))["shape"]
        else:
            assert torch.equal(ours[name], tensor), name


def gguf_kinds(seed: int) -> list[str]:
    return [["F32", "Q8_0", "Q4_K_M"], ["F16", "Q6_K"], ["BF16", "Q5_K_M"]][seed]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gguf_files_are_proved_for_several_seeds_and_kinds(
    base: Path, tmp_path: Path, llama_cpp: Any, seed: int
) -> None:
    run = new_run(base, tmp_path / "tiny", seed)
    kinds = gguf_kinds(seed)
    export(recipe_for(base, "bfloat16" if seed == 2 else "float32", gguf=kinds, adapter_gguf=True), run)
    found = outcomes(run)
    assert all(found.values())
    for kind in kinds:
        exact = kind in ("F32", "F16", "BF16")
        assert f"gguf_{kind}_{'computes_as_merged' if exact else 'is_merged_quantised'}" in found
        assert {f"gguf_{kind}_tokens_equal", f"gguf_{kind}_stops_equal", f"gguf_{kind}_answers_end"} <= set(
            found
        )
        assert (run.predictions / f"gguf-{kind}.jsonl").is_file()
    assert "gguf_adapter_computes_as_live" in found
    files = {f"tiny-{kind}.gguf" for kind in [*kinds, "adapter"]}
    assert files | {"contract.json", "tokenizer.json"} <= checked(run.gguf)
    entry = record.entry(run, f"gguf-{kinds[0]}")
    assert entry["bytes"] > 0
    assert entry["logits"]["greedy"] > 0.9
    assert entry["metric"]


# ---- loss and stops


def test_more_loss_than_allowed_removes_that_thing_alone(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = artifacts.against_live

    def against(job: Any, name: str) -> Any:
        found = right(job, name)
        return found._replace(difference=Interval(-0.2, -0.3, 0.1, 4)) if name == "nf4" else found

    monkeypatch.setattr(artifacts, "against_live", against)
    with pytest.raises(ProofFailed, match="nf4_keeps_score"):
        export(recipe_for(base, quantized=["nf4", "int8"], max_loss=0.05), run)
    assert not (run.quantized / "nf4").exists()
    assert (run.quantized / "int8" / "model.safetensors").is_file()
    assert set(record.entries(run)) == {"merged", "int8"}


@pytest.mark.parametrize(
    ("value", "lower", "passed"),
    [(-0.04, False, True), (-0.06, False, False), (0.06, False, True), (0.06, True, False)],
)
def test_loss_is_judged_by_its_value(value: float, lower: bool, passed: bool) -> None:
    proof = artifact_proofs.keeps_score(
        "nf4", "f1", Interval(value, value - 0.1, value + 0.1, 9), lower, 0.05
    )
    assert proof.passed is passed


def test_a_limit_on_greedy_tokens_seldom_refuses_noise_of_its_own_size() -> None:
    """500 models with near ties, each noisy twice; and noise of eight times the size is always refused."""
    draw = torch.Generator().manual_seed(0)
    refused = []
    for size in (1, 8):
        for _ in range(500):
            merged, noise, other = (torch.randn(128, 50, generator=draw) for _ in range(3))
            noisy, found = merged + 0.02 * noise, merged + 0.02 * size * other
            refused.append((size, not artifact_proofs.same_greedy("nf4", found, merged, noisy).passed))
    alarms = sum(bad for size, bad in refused if size == 1)
    assert alarms <= 2 and sum(bad for size, bad in refused if size == 8) >= 490


def test_answers_that_never_end_fail_and_a_few_do_not() -> None:
    live = [{"stopped": True}] * 50
    assert not artifact_proofs.answers_end("nf4", [{"stopped": False}] * 50, live).passed
    assert artifact_proofs.answers_end("nf4", [{"stopped": i > 2} for i in range(50)], live).passed
    assert artifact_proofs.answers_end("nf4", [{"stopped": False}], [{"stopped": False}]).passed


# ---- again


def test_what_stands_is_not_made_again(base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed export goes on: the folder that was finished stays, the other one is made."""
    export(recipe_for(base, quantized=["nf4"]), run)
    before = (run.quantized / "nf4" / "model.safetensors").stat().st_mtime_ns
    (run.path / ".export.left.tmp").mkdir()  # what a kill leaves
    export(recipe_for(base, quantized=["nf4", "int8"]), run)
    assert (run.quantized / "nf4" / "model.safetensors").stat().st_mtime_ns == before
    assert (run.quantized / "int8").is_dir()
    assert not list(run.path.glob(".export*"))


def test_a_harmed_file_is_made_again(base: Path, run: Run) -> None:
    export(recipe_for(base, quantized=["nf4"]), run)
    path = run.quantized / "nf4" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    export(recipe_for(base, quantized=["nf4"]), run)
    assert path.read_bytes() == whole


def test_what_another_adapter_made_goes(base: Path, run: Run) -> None:
    export(recipe_for(base, quantized=["nf4"]), run)
    write_adapter(base, run.adapter, seed=9)
    export(recipe_for(base), run)
    assert not list(run.quantized.glob("*/*.safetensors"))
    assert not (run.predictions / "nf4.jsonl").exists()
    assert not any(name.startswith("nf4") for name in outcomes(run))


def test_without_merged_it_is_merged_for_the_time_being(base: Path, run: Run) -> None:
    export(recipe_for(base, merged=False, quantized=["nf4"]), run)
    assert (run.quantized / "nf4").is_dir()
    assert not run.merged.exists()
    assert not (run.predictions / "merged.jsonl").exists()
    assert not list(run.path.glob(".export*"))


def test_checksums_are_read_again_where_a_file_is_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes that stand under their line already are not read with each thing that comes beside them."""
    old, new = tmp_path / "old.gguf", tmp_path / "new.gguf"
    old.write_bytes(b"old")
    os.utime(old, (1e9, 1e9))
    write_sums(tmp_path)
    read: list[str] = []
    right = folder.sha256_file
    monkeypatch.setattr(folder, "sha256_file", lambda path: read.append(path.name) or right(path))
    new.write_bytes(b"new")
    write_sums(tmp_path)
    assert read == ["new.gguf"] and checked(tmp_path) == {"old.gguf", "new.gguf"}
    old.write_bytes(b"changed")
    write_sums(tmp_path)
    assert "old.gguf" in read and checked(tmp_path) == {"old.gguf", "new.gguf"}
    new.unlink()
    write_sums(tmp_path)
    assert checked(tmp_path) == {"old.gguf"}
