"""Stage export: every proof passes on an honest merge, and what lies around the merged folder."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import recipe, reports, write_byte_tokenizer, write_run
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tunesmith.base import resolve
from tunesmith.contract import DATE, Contract
from tunesmith.errors import ModelError, RecipeError
from tunesmith.example import Message
from tunesmith.export.export import export
from tunesmith.export.measure import folder_model, logits, proof_rows
from tunesmith.export.preflight import require_exportable
from tunesmith.model.adapter import save_adapter
from tunesmith.model.load import load_model
from tunesmith.model.lora import adapters, add_lora
from tunesmith.recipe import Recipe, Tune
from tunesmith.rows import Rows
from tunesmith.run import Run

TRAIN, VALIDATION, TEST = (
    reports(8, seed=1, name="train"),
    reports(5, seed=2, name="v"),
    reports(4, seed=3, name="test"),
)
TUNE = {"rank": 4, "alpha": 8.0}
PROVED = {
    "merged_equals_fp32_merge",
    "merged_has_effect",
    "merged_keeps_adapter",
    "merged_renders_as_contract",
    "merged_config_equal",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers in bf16 that knows the byte tokenizer."""
    folder = write_byte_tokenizer(tmp_path_factory.mktemp("base"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=262, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def recipe_for(base: Path, dtype: str = "float32", quantize: str = "none", **sections: Any) -> Recipe:
    model = {"base": str(base), "dtype": dtype, "template": "llama3", "quantize": quantize}
    evaluate = {"batch": 4, "decoding": {"max_tokens": 6}}
    return recipe(**{"model": model, "evaluate": evaluate, "tune": TUNE} | sections)


def write_adapter(base: Path, folder: Path, strength: float = 0.05) -> None:
    model = load_model(resolve(recipe_for(base).model), dtype="float32")
    add_lora(model, Tune(**TUNE), seed=0)
    torch.manual_seed(1)
    for adapter in adapters(model):
        adapter.B.data.normal_(0.0, strength)
    save_adapter(model, folder, str(base), Tune(**TUNE))


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Run:
    """A trained run whose test rows are scored."""
    made = write_run(tmp_path / "tiny", TRAIN, validation=VALIDATION, test=TEST)
    write_adapter(base, made.adapter)
    return made


def outcomes(run: Run) -> dict[str, bool]:
    return {proof["name"]: proof["passed"] for proof in run.proofs()}


# ---- honest merges


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_merged_folder_is_proved_and_whole(base: Path, run: Run, dtype: str) -> None:
    export(recipe_for(base, dtype), run)
    assert outcomes(run) == dict.fromkeys({*PROVED, "merged_close_to_adapter"}, True)
    kind = dtype if dtype != "float32" else "bfloat16"
    assert {str(t.dtype) for t in load_file(run.merged / "model.safetensors").values()} == {f"torch.{kind}"}
    said = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=run.merged, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout
    names = {path.name for path in run.merged.iterdir()} - {"SHA256SUMS"}
    assert {line.partition(":")[0] for line in said.stdout.splitlines()} == names
    predictions = (run.predictions / "merged.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in predictions] == [row.id for row in TEST]
    assert not list(run.path.glob(".merged*"))


def test_transformers_answers_as_the_live_adapter(base: Path, run: Run) -> None:
    """The folder in other hands: model, stops, tokenizer and template, without a line of ours."""
    export(recipe_for(base), run)
    contract = Contract.load(run.contract_folder)
    tokenizer = AutoTokenizer.from_pretrained(run.merged)
    turns = [{"role": m.role, "content": m.content} for m in TEST[0].prompt]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert ids == contract.prompt_ids(TEST[0].prompt)
    model = AutoModelForCausalLM.from_pretrained(run.merged, dtype=torch.float32)
    assert set(model.generation_config.eos_token_id) == contract.stop_ids
    assert model.generation_config.do_sample is False
    ours = folder_model(run.merged, torch.float32, torch.device("cpu"))
    rows = proof_rows(Rows.open(run.data, "test"), [0])
    with torch.no_grad():
        theirs = model(torch.tensor([rows.ids[0]])).logits[0]
    wanted = logits(ours, rows)
    positions = [t - 1 for t, learned in enumerate(rows.learned[0]) if learned]
    assert (theirs[positions] - wanted).abs().max() < 1e-4


def test_other_programs_find_the_frozen_date(base: Path, tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
        "{%- endif %}{{ date_string }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    )
    file = tmp_path / "dated.jinja"
    file.write_text(template)
    contract = Contract.make(base, template=str(file))
    contract.save(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turns = [{"role": "user", "content": "hi"}]
    assert DATE in tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.apply_chat_template(turns, tokenize=False) == contract.render(
        [Message("user", "hi")], answer_next=False
    )


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_both_candidates_of_a_quantised_base_answer_the_validation_rows(
    base: Path, run: Run, how: str
) -> None:
    export(recipe_for(base, "bfloat16", how), run)
    for name in ("live", "dequantized", "original"):
        lines = (run.predictions / "choice" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [row.id for row in VALIDATION]
    origin = json.loads((run.merged / "merge.json").read_text())
    # a random model's answers are all unparsable, so the scores are equal: the provable candidate is kept
    assert origin["source"] == "dequantized"
    assert origin["trained"] == {"quantize": how, "dtype": "bfloat16"}
    assert outcomes(run) == dict.fromkeys(
        {*PROVED, "merged_close_to_adapter", "merged_scores_as_adapter"}, True
    )


def test_scored_validation_rows_are_answered_once(base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny", TRAIN, validation=VALIDATION)
    write_adapter(base, run.adapter)
    export(recipe_for(base, "bfloat16", "nf4"), run)
    kept = (run.predictions / "choice" / "dequantized.jsonl").read_bytes()
    assert (run.predictions / "merged.jsonl").read_bytes() == kept
    assert (run.predictions / "tuned.jsonl").exists()  # the live adapter's are evaluate's own


def test_without_validation_rows_the_trained_image_is_kept(base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny", TRAIN, test=TEST)
    write_adapter(base, run.adapter)
    export(recipe_for(base, "bfloat16", "nf4"), run)
    assert json.loads((run.merged / "merge.json").read_text())["source"] == "dequantized"
    assert outcomes(run) == dict.fromkeys({*PROVED, "merged_close_to_adapter"}, True)


def test_a_base_stored_in_nf4_becomes_16_bit(base: Path, run: Run, tmp_path: Path) -> None:
    """There is no original to merge into: the packed weights are all that there is."""
    from bitsandbytes.functional import quantize_4bit

    stored = Path(shutil.copytree(base, tmp_path / "stored"))
    tensors = load_file(base / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name]:
        packed, state = quantize_4bit(tensors[name], blocksize=64, compress_statistics=True, quant_type="nf4")
        tensors[name] = packed
        tensors |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    save_file(tensors, stored / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    how = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (stored / "config.json").write_text(json.dumps(config | {"quantization_config": how}))
    export(recipe_for(stored, "bfloat16", "nf4"), run)
    again = recipe_for(stored, "bfloat16", "nf4")
    again = again.model_copy(update={"export": again.export.model_copy(update={"quantized": ("nf4",)})})
    with pytest.raises(RecipeError, match="lose the adapter"):
        require_exportable(again, resolve(again.model), tmp_path)
    assert outcomes(run) == dict.fromkeys({*PROVED, "merged_close_to_adapter"}, True)
    model = AutoModelForCausalLM.from_pretrained(run.merged)
    assert model.dtype == torch.bfloat16
    assert "quantization_config" not in json.loads((run.merged / "config.json").read_text())


def test_full_fine_tuning(base: Path, run: Run) -> None:
    tensors = load_file(base / "model.safetensors")
    torch.manual_seed(2)
    trained = {name: t.float() + torch.randn(t.shape) * 0.01 for name, t in tensors.items()}
    for path in run.adapter.iterdir():
        path.unlink()
    save_file(trained, run.adapter / "model.safetensors")
    (run.adapter / "config.json").write_bytes((base / "config.json").read_bytes())
    export(recipe_for(base, tune={"method": "full"}), run)
    assert outcomes(run) == dict.fromkeys(
        {*PROVED, "merged_close_to_adapter"} - {"merged_keeps_adapter"}, True
    )
    found = load_file(run.merged / "model.safetensors")
    assert all(torch.equal(found[name], t.to(torch.bfloat16)) for name, t in trained.items())


# ---- around it


def test_again_gives_the_same_bytes(base: Path, run: Run) -> None:
    (run.path / ".merged.left.tmp").mkdir()  # of an export that was killed
    export(recipe_for(base, "bfloat16"), run)
    before = {path.name: path.read_bytes() for path in run.merged.iterdir()}
    export(recipe_for(base, "bfloat16"), run)
    assert before == {path.name: path.read_bytes() for path in run.merged.iterdir()}
    assert not list(run.path.glob(".merged*"))


def test_nothing_is_made_that_nobody_asked_for(base: Path, run: Run) -> None:
    export(recipe_for(base, export={"merged": False}), run)
    assert not run.merged.exists()
    assert not run.proofs()


def test_without_an_adapter_there_is_nothing_to_export(base: Path, run: Run) -> None:
    (run.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="nothing to export yet"):
        export(recipe_for(base), run)


def test_the_contract_comes_with_the_folder(base: Path, run: Run) -> None:
    export(recipe_for(base), run)
    assert Contract.load(run.merged).sha256 == Contract.load(run.contract_folder).sha256
