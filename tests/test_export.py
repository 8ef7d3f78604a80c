"""Stage export: every proof passes on an honest merge and fails on the mistake it stands against."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import recipe, reports, write_byte_tokenizer, write_run
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tunesmith.base import resolve
from tunesmith.contract import DATE, Contract
from tunesmith.errors import ModelError, ProofFailed
from tunesmith.example import Message
from tunesmith.export import measure, proofs, yardstick
from tunesmith.export import merged as stage
from tunesmith.export.choose import Compared, choose
from tunesmith.export.export import export
from tunesmith.export.measure import Rerounded, folder_model, logits, proof_rows, reround
from tunesmith.model.adapter import save_adapter
from tunesmith.model.load import load_model
from tunesmith.model.lora import adapters, add_lora
from tunesmith.model.merge import Delta
from tunesmith.model.weights import Dense, quantized
from tunesmith.recipe import Recipe, Tune
from tunesmith.rows import Rows
from tunesmith.run import Run, write_atomic
from tunesmith.statistics import Interval

TRAIN, VALIDATION, TEST = (
    reports(8, seed=1, name="train"),
    reports(5, seed=2, name="v"),
    reports(4, seed=3, name="test"),
)
TUNE = {"rank": 4, "alpha": 8.0}
PROVED = {"merged_equals_fp32_merge", "merged_has_effect", "merged_renders_as_contract"}


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
    assert outcomes(run) == dict.fromkeys({*PROVED, "merged_close_to_adapter"}, True)
    found = load_file(run.merged / "model.safetensors")
    assert all(torch.equal(found[name], t.to(torch.bfloat16)) for name, t in trained.items())


# ---- mistakes

Change = Callable[[dict[str, Delta]], dict[str, Delta]]


def transposed(delta: Delta) -> Delta:
    """(B A)ᵀ instead of B A, where the weight is square."""
    square = delta.B.shape[0] == delta.A.shape[1]
    return Delta(delta.B.t(), delta.A.t(), delta.scaling) if square else delta


DELTAS: dict[str, Change] = {
    "scaling forgotten": lambda d: {name: one._replace(scaling=1.0) for name, one in d.items()},
    "added twice": lambda d: {name: one._replace(scaling=2 * one.scaling) for name, one in d.items()},
    "transposed": lambda d: {name: transposed(one) for name, one in d.items()},
    "zero": lambda d: {name: one._replace(scaling=0.0) for name, one in d.items()},
    "one layer skipped": lambda d: {name: one for name, one in d.items() if ".layers.1." not in name},
    "one linear skipped": lambda d: {name: one for name, one in d.items() if "1.mlp.up_proj" not in name},
}


@pytest.mark.parametrize("mistake", DELTAS)
def test_a_wrong_delta_fails_the_first_proof(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    right = stage.read_deltas
    monkeypatch.setattr(stage, "read_deltas", lambda folder: DELTAS[mistake](right(folder)))
    with pytest.raises(ProofFailed, match="merged_equals_fp32_merge"):
        export(recipe_for(base), run)
    assert not run.merged.exists()
    assert not list(run.path.glob(".merged*"))


@pytest.mark.parametrize("mistake", sorted(set(DELTAS) - {"one linear skipped"}))
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_the_same_mistake_in_both_merges_fails_another(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch, mistake: str, quantize: str
) -> None:
    """A mistake in what both ways of merging share is seen by the live adapter, which shares nothing."""
    right_file, right_memory = stage.read_deltas, measure.load_adapter

    def spoil(model: Any, folder: Path) -> list[str]:
        names = right_memory(model, folder)
        found = {one.name: Delta(one.A, one.B, one.scaling) for one in adapters(model)}
        spoiled = DELTAS[mistake](found)
        for one in adapters(model):
            delta = spoiled.get(one.name, Delta(one.A, one.B, 0.0))
            one.A, one.B = torch.nn.Parameter(delta.A), torch.nn.Parameter(delta.B)
            one.scaling = delta.scaling
        return names

    monkeypatch.setattr(stage, "read_deltas", lambda folder: DELTAS[mistake](right_file(folder)))
    monkeypatch.setattr(measure, "load_adapter", spoil)
    wanted = "merged_has_effect" if mistake == "zero" else "merged_close_to_adapter"
    with pytest.raises(ProofFailed, match=wanted):
        export(recipe_for(base, "bfloat16" if quantize == "nf4" else "float32", quantize), run)


def after_writing(monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]) -> None:
    right = stage.merge_weights

    def merge_weights(*given: Any, **more: Any) -> dict[str, str]:
        sums = right(*given, **more)
        change(given[2])
        return sums

    monkeypatch.setattr(stage, "merge_weights", merge_weights)


def test_requantising_the_merged_weights_fails(base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def requantise(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file(
            {
                name: quantized(t, "nf4").dequantize(t.dtype) if "_proj" in name else t
                for name, t in tensors.items()
            },
            folder / "model.safetensors",
        )

    after_writing(monkeypatch, requantise)
    with pytest.raises(ProofFailed, match="merged_equals_fp32_merge"):
        export(recipe_for(base, "bfloat16", "nf4"), run)


def test_the_wrong_base_fails(base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """16-bit weights where the image of the quantised ones is meant: the commonest mistake with QLoRA."""
    right = stage.merge_weights
    monkeypatch.setattr(
        stage, "merge_weights", lambda *given, **more: right(*given, **more | {"source": "original"})
    )
    with pytest.raises(ProofFailed, match="merged_equals_fp32_merge"):
        export(recipe_for(base, "bfloat16", "nf4"), run)


def test_the_wrong_base_in_both_merges_fails(base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    files, memory = stage.merge_weights, yardstick.merged_in_memory
    wrong = {"source": "original"}
    monkeypatch.setattr(stage, "merge_weights", lambda *given, **more: files(*given, **more | wrong))
    monkeypatch.setattr(yardstick, "merged_in_memory", lambda *given, **more: memory(*given, **more | wrong))
    with pytest.raises(ProofFailed, match="merged_close_to_adapter"):
        export(recipe_for(base, "bfloat16", "nf4"), run)


def test_merging_a_merged_base_again_fails(
    base: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(recipe_for(base), run)
    twice = resolve(recipe_for(run.merged.rename(tmp_path / "once")).model)
    right = stage.merge_weights
    monkeypatch.setattr(stage, "merge_weights", lambda _base, *given, **more: right(twice, *given, **more))
    with pytest.raises(ProofFailed, match="merged_equals_fp32_merge"):
        export(recipe_for(base), run)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_an_adapter_without_effect_fails(base: Path, run: Run, quantize: str) -> None:
    write_adapter(base, run.adapter, strength=0.0)
    with pytest.raises(ProofFailed, match="merged_has_effect"):
        export(recipe_for(base, "bfloat16", quantize), run)


def test_a_failed_merge_takes_the_older_one_with_it(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(recipe_for(base), run)
    write_adapter(base, run.adapter, strength=0.06)
    monkeypatch.setattr(stage, "read_deltas", lambda _: {})
    with pytest.raises(ProofFailed):
        export(recipe_for(base), run)
    assert not run.merged.exists()
    assert not (run.predictions / "merged.jsonl").exists()  # or the report would show the old one's scores


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


# ---- the choice, and the noise


def compared(score: float, low: float, high: float, lower: bool = False) -> Compared:
    return Compared(score, Interval((low + high) / 2, low, high, 50), lower)


def test_of_a_metric_that_gets_better_as_it_falls_the_lower_candidate_is_kept() -> None:
    worse, better = compared(0.4, -0.1, 0.2, True), compared(0.3, -0.2, 0.1, True)
    assert choose({"dequantized": worse, "original": better}) == "original"
    assert choose({"dequantized": better, "original": worse}) == "dequantized"


def test_the_better_candidate_that_agrees_is_kept() -> None:
    alike = compared(0.8, -0.02, 0.02)
    assert choose({"dequantized": alike, "original": compared(0.82, -0.01, 0.05)}) == "original"
    assert choose({"dequantized": alike, "original": compared(0.79, -0.03, 0.01)}) == "dequantized"
    assert choose({"dequantized": alike, "original": compared(0.8, -0.02, 0.02)}) == "dequantized"
    assert choose({"dequantized": alike, "original": compared(0.9, 0.05, 0.15)}) == "dequantized"
    assert (
        choose({"dequantized": compared(0.2, -0.7, -0.5), "original": compared(0.1, -0.8, -0.6)})
        == "dequantized"
    )


def test_scores_far_from_the_live_adapters_fail(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both candidates answer nonsense, the live adapter the truth."""
    right = stage.answer

    def answer(recipe: Recipe, run: Run, model: Any, examples: Any, name: str) -> None:
        right(recipe, run, model, examples, name)
        if name == "choice/live":
            path = run.predictions / f"{name}.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            text = "".join(json.dumps(line | {"answer": line["gold"]}) + "\n" for line in lines)
            write_atomic(path, text.encode())

    monkeypatch.setattr(stage, "answer", answer)
    with pytest.raises(ProofFailed, match="merged_scores_as_adapter"):
        export(recipe_for(base, "bfloat16", "nf4"), run)


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16, torch.float16])
def test_rerounding_moves_as_much_as_rounding_does(held: torch.dtype) -> None:
    """The noise of the second proof is the error of a merge: the same variance, in units in the last place."""
    torch.manual_seed(0)
    exact = torch.randn(400, 500, dtype=torch.float64) * 0.03
    target = held if held != torch.float32 else torch.bfloat16
    weight = exact.to(target).to(held)
    generator = torch.Generator().manual_seed(4)
    moved = reround(weight, target, generator).double() - weight.double()
    rounded = exact.to(target).double() - exact
    assert moved.std() == pytest.approx(float(rounded.std()), rel=0.05)
    assert abs(float(moved.mean())) < 0.02 * float(moved.std())
    frozen = Rerounded(Dense(weight), target, seed=3)
    assert torch.equal(frozen.dequantize(held), frozen.dequantize(held))


def test_zeros_and_tiny_numbers_survive_rerounding() -> None:
    weight = torch.tensor([0.0, 1e-7, -1e-7, 6e-8, 65504.0], dtype=torch.float16).repeat(1000)
    moved = reround(weight, torch.float16, torch.Generator().manual_seed(0))
    assert (moved[weight == 0] == 0).all()
    assert (moved[:-1].abs() < 65504.0).logical_or(weight[:-1] == 65504.0).all()
    assert not moved.isnan().any()


def test_numbers_that_are_not_finite_fail_every_proof() -> None:
    fine, broken = torch.zeros(2, 3), torch.full((2, 3), float("nan"))
    assert not proofs.merged_equals_fp32_merge(broken, fine, fine).passed
    assert not proofs.merged_close_to_adapter(broken, fine, fine + 1).passed
    assert proofs.merged_equals_fp32_merge(fine, fine, fine).passed


def test_rows_of_a_proof_are_few_and_short(run: Run) -> None:
    rows = Rows.open(run.data, "test")
    picked = proof_rows(rows, range(len(rows)))
    assert sum(map(sum, picked.learned)) <= measure.POSITIONS
    assert [len(row) for row in picked.ids] == sorted(rows.lengths.tolist())[: len(picked.ids)]
