"""The stage on a tiny random Llama: likelihoods against transformers' own loss, base and tuned, proof, resume."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_run import recipe, reports, write_byte_tokenizer, write_run
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tunesmith import pipeline
from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.data.prepare import prepare
from tunesmith.errors import ModelError, ProofFailed, RowCheckFailed
from tunesmith.evaluate import evaluate as stage
from tunesmith.evaluate.measured import likelihood
from tunesmith.evaluate.measured.likelihood import gold_rows, nats
from tunesmith.evaluate.stops import answers_stop, most_cut
from tunesmith.model.adapter import save_adapter
from tunesmith.model.load import load_model
from tunesmith.model.lora import adapters, add_lora
from tunesmith.recipe import Tune
from tunesmith.rows import Rows
from tunesmith.run import Run

TRAIN, TEST = reports(12, seed=1, name="train"), reports(6, seed=2, name="test")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random Llama of two layers that knows the byte tokenizer."""
    folder = write_byte_tokenizer(tmp_path_factory.mktemp("base"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=262, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def recipe_for(base, **sections):
    model = {"base": str(base), "dtype": "float32", "template": "llama3"}
    decoding = {"max_tokens": 12}
    return recipe(
        model=model, **{"evaluate": {"batch": 4, "decoding": decoding}, "tune": {"rank": 4}} | sections
    )


@pytest.fixture
def run(base, tmp_path):
    """A prepared run with an adapter that changes the model."""
    made = write_run(tmp_path / "tiny", TRAIN, test=TEST)
    write_adapter(base, made.adapter, strength=0.3)
    return made


def write_adapter(base, folder, strength):
    model = load_model(resolve(recipe_for(base).model), dtype="float32")
    add_lora(model, Tune(rank=4), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for adapter in adapters(model):
            adapter.B.normal_(0.0, strength)
    save_adapter(model, folder, str(base), Tune(rank=4))


def always_stops(monkeypatch):
    """A random model never says the terminator: let the stage pass its proof."""
    monkeypatch.setattr(stage, "answers_stop", lambda *given: answers_stop([[{"stopped": True}]], [1], 1))


# ---- likelihood


def expected_nats(folder, rows, number, stop_ids):
    """transformers' own logits, row by row, one position at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids, learned = rows.ids(number), rows.learned(number)
    with torch.no_grad():
        logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0]
    total, tokens = 0.0, 0
    for t in range(1, len(ids)):
        if learned[t] and int(ids[t]) not in stop_ids:
            total -= torch.log_softmax(logits[t - 1], -1)[int(ids[t])].item()
            tokens += 1
    return total, tokens


def test_nats_equal_transformers_and_leave_the_terminator_out(base, run, monkeypatch):
    contract, rows = Contract.load(run.contract_folder), Rows.open(run.data, "test")
    monkeypatch.setattr(likelihood, "TOKENS", 300)  # several batches, of one to three rows
    gold = gold_rows(rows, range(len(rows)), contract)
    model = load_model(resolve(recipe_for(base).model), dtype="float32")
    found = nats(stage._measuring(model, recipe_for(base)), gold)
    for number, row in enumerate(gold):
        nll, tokens = expected_nats(base, rows, number, contract.stop_ids)
        assert found[number] == pytest.approx(nll, rel=1e-5)
        assert row.tokens == tokens == int(rows.learned(number).sum()) - 1
        assert row.bytes == len((TEST[number].answer or "").encode())


def test_counting_the_terminator_would_be_seen(base, run):
    contract, rows = Contract.load(run.contract_folder), Rows.open(run.data, "test")
    mutant = gold_rows(rows, [0], type("NoStops", (), {"stop_ids": frozenset(), "decode": contract.decode})())
    assert mutant[0].tokens == gold_rows(rows, [0], contract)[0].tokens + 1


# ---- the stage


def said(run, name):
    lines = (run.predictions / f"{name}.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line)["answer"] for line in lines]


def test_stage_scores_both_systems_and_floors_on_the_same_rows(base, run, monkeypatch):
    always_stops(monkeypatch)
    stage.evaluate(recipe_for(base), run)
    content = json.loads((run.report / "report.json").read_text())
    assert set(content["scores"]) == {"base", "tuned", "majority", "nearest"}
    assert content["rows"] == 6
    assert (
        content["scores"]["tuned"]["bits_per_byte"]["value"]
        != content["scores"]["base"]["bits_per_byte"]["value"]
    )
    answers = {
        name: [json.loads(line) for line in (run.predictions / f"{name}.jsonl").read_text().split("\n")[:-1]]
        for name in ("base", "tuned")
    }
    assert (
        [row["id"] for row in answers["base"]]
        == [row["id"] for row in answers["tuned"]]
        == [e.id for e in TEST]
    )
    assert [row["answer"] for row in answers["base"]] != [row["answer"] for row in answers["tuned"]]
    assert [row["gold"] for row in answers["base"]] == [e.answer for e in TEST]
    first = json.loads((run.report / "likelihood.jsonl").read_text().split("\n")[0])["nll"]
    stop_ids = Contract.load(run.contract_folder).stop_ids
    assert first["base"] == pytest.approx(
        expected_nats(base, Rows.open(run.data, "test"), 0, stop_ids)[0], rel=1e-5
    )
    assert first["tuned"] != pytest.approx(first["base"], rel=1e-3)


def test_base_is_the_base_and_an_empty_adapter_changes_nothing(base, run, monkeypatch):
    always_stops(monkeypatch)
    shutil.rmtree(run.adapter)
    write_adapter(base, run.adapter, strength=0.0)
    stage.evaluate(recipe_for(base), run)
    lines = [json.loads(line) for line in (run.report / "likelihood.jsonl").read_text().split("\n")[:-1]]
    rows = Rows.open(run.data, "test")
    for number, line in enumerate(lines):
        nll, _ = expected_nats(base, rows, number, Contract.load(run.contract_folder).stop_ids)
        assert line["nll"]["base"] == line["nll"]["tuned"] == pytest.approx(nll, rel=1e-5)
    assert said(run, "base") == said(run, "tuned")


def test_a_model_that_never_stops_fails_the_proof_after_the_report_is_written(base, run):
    with pytest.raises(ProofFailed, match="answers_stop") as error:
        stage.evaluate(recipe_for(base, evaluate={"decoding": {"max_tokens": 120}}), run)
    assert error.value.exit_code == 3
    content = json.loads((run.report / "report.json").read_text())
    assert [proof["passed"] for proof in content["proofs"] if proof["name"] == "answers_stop"] == [False]


def test_a_redacted_report_holds_no_text_where_the_proof_fails_too(base, run):
    settings = recipe_for(base, evaluate={"decoding": {"max_tokens": 120}})
    with pytest.raises(ProofFailed, match="answers_stop"):
        stage.evaluate(settings, run)
    quoted = TEST[0].asked.split(".")[0]
    assert quoted in (run.report / "report.html").read_text()
    for name in ("prepare", "train"):
        run.stamp(name, next(one for one in pipeline.STAGES if one.name == name).inputs(settings, run))
    with pytest.raises(ProofFailed, match="answers_stop"):
        pipeline.redo(settings, run, "evaluate", redact=True)
    assert json.loads((run.report / "report.json").read_text())["redacted"] is True
    assert quoted not in (run.report / "report.html").read_text()


def test_merged_answers_go_where_tuned_answers_anew(base, run, monkeypatch, capsys):
    always_stops(monkeypatch)
    stage.evaluate(recipe_for(base), run)
    shutil.copy(run.predictions / "tuned.jsonl", run.predictions / "merged.jsonl")
    stage.evaluate(recipe_for(base, evaluate={"batch": 2, "decoding": {"max_tokens": 12}}), run)
    assert (run.predictions / "merged.jsonl").exists()  # nothing has changed that answers depend on
    stage.evaluate(recipe_for(base, evaluate={"decoding": {"max_tokens": 12, "temperature": 1.0}}), run)
    assert "merged" not in json.loads((run.report / "report.json").read_text())["scores"]
    assert "merged is left out of the report until it is exported again" in capsys.readouterr().err


def test_another_encoder_in_the_same_folder_is_another_input(base, run, tmp_path):
    settings = recipe_for(base, evaluate={"bertscore_model": str(tmp_path / "encoder")})
    evaluated = next(one for one in pipeline.STAGES if one.name == "evaluate")
    assert evaluated.inputs(settings, run)["bertscore"] == "missing"
    shutil.copytree(base, tmp_path / "encoder")
    before = evaluated.inputs(settings, run)
    assert evaluated.inputs(settings, run) == before
    with (tmp_path / "encoder" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    changed = evaluated.inputs(settings, run)
    assert {key for key in before if before[key] != changed[key]} == {"bertscore"}


def test_again_alone_gives_the_same_report(base, run, monkeypatch):
    always_stops(monkeypatch)
    stage.evaluate(recipe_for(base), run)
    before = (run.report / "report.json").read_bytes()
    stage.evaluate(recipe_for(base), run)
    assert (run.report / "report.json").read_bytes() == before


def test_a_new_adapter_is_answered_anew(base, run, monkeypatch):
    always_stops(monkeypatch)
    stage.evaluate(recipe_for(base), run)
    before = (run.predictions / "tuned.jsonl").read_text()
    shutil.rmtree(run.adapter)
    write_adapter(base, run.adapter, strength=0.6)
    stage.evaluate(recipe_for(base), run)
    assert (run.predictions / "tuned.jsonl").read_text() != before


def test_seeded_samples_are_averaged(base, run, monkeypatch):
    always_stops(monkeypatch)
    decoding = {"max_tokens": 12, "temperature": 1.0, "samples": 3, "seed": 7}
    made = recipe_for(base, evaluate={"rows": 4, "decoding": decoding})
    stage.evaluate(made, run)
    first = (run.predictions / "tuned.jsonl").read_text()
    assert len(first.split("\n")) == 4 * 3 + 1
    content = json.loads((run.report / "report.json").read_text())
    assert content["rows"] == 4
    shutil.rmtree(run.predictions)
    stage.evaluate(made, run)
    assert (run.predictions / "tuned.jsonl").read_text() == first


def test_quantised_base_is_scored_as_trained(base, run, monkeypatch):
    always_stops(monkeypatch)
    stage.evaluate(recipe_for(base), run)
    dense = json.loads((run.report / "likelihood.jsonl").read_text().split("\n")[0])
    model = {"base": str(base), "dtype": "float32", "template": "llama3", "quantize": "nf4"}
    stage.evaluate(recipe_for(base).model_copy(update={"model": recipe(model=model).model}), run)
    packed = json.loads((run.report / "likelihood.jsonl").read_text().split("\n")[0])
    assert packed["nll"]["base"] != dense["nll"]["base"]
    assert packed["nll"]["base"] == pytest.approx(dense["nll"]["base"], rel=0.2)


def test_full_fine_tuning_is_scored_from_its_own_weights(base, run, monkeypatch):
    always_stops(monkeypatch)
    shutil.rmtree(run.adapter)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    model.save_pretrained(run.adapter)
    stage.evaluate(recipe_for(base, tune={"method": "full"}), run)
    contract, rows = Contract.load(run.contract_folder), Rows.open(run.data, "test")
    line = json.loads((run.report / "likelihood.jsonl").read_text().split("\n")[0])
    assert line["nll"]["tuned"] == pytest.approx(
        expected_nats(run.adapter, rows, 0, contract.stop_ids)[0], rel=1e-5
    )
    assert line["nll"]["base"] == pytest.approx(expected_nats(base, rows, 0, contract.stop_ids)[0], rel=1e-5)


def test_refuses_before_a_model_is_loaded(base, run, monkeypatch):
    monkeypatch.setattr(stage, "load_tuned", lambda *given, **named: pytest.fail("loaded a model"))
    shutil.rmtree(run.adapter)
    with pytest.raises(ModelError, match="nothing to evaluate"):
        stage.evaluate(recipe_for(base), run)
    broken = reports(3, seed=9, name="broken")
    broken[1] = type(broken[1])(
        broken[1].id, (*broken[1].prompt, type(broken[1].messages[0])("assistant", "no", True))
    )
    made = write_run(run.path.parent / "broken", TRAIN, test=broken)
    with pytest.raises(RowCheckFailed, match="1 of 3 gold answers can't be parsed"):
        stage.evaluate(recipe_for(base), made)


def test_prepare_refuses_rows_that_evaluate_could_not_score(base, tmp_path):
    for name, rows in (("train", TRAIN), ("test", TEST)):
        lines = [
            json.dumps({"id": row.id, "prompt": row.prompt[0].content, "completion": row.answer})
            for row in rows
        ]
        if name == "test":
            lines[2] = json.dumps({"id": "odd", "prompt": "x", "completion": '{"stage": "IV", "grade": 2}'})
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    data = {
        "train": str(tmp_path / "train.jsonl"),
        "validation": None,
        "max_length": 512,
        "test": str(tmp_path / "test.jsonl"),
    }
    with pytest.raises(RowCheckFailed, match="grade") as error:
        prepare(recipe_for(base, data=data), Run(tmp_path / "run"))
    assert "test.jsonl:3" in str(error.value)


# ---- the proof


def answers(stopped, cut):
    return [[{"stopped": True}]] * stopped + [[{"stopped": False}]] * cut


@pytest.mark.parametrize(
    "stopped, cut, passes",
    [
        (250, 0, True),
        (240, 10, True),
        (151, 99, True),
        (100, 150, False),
        (0, 250, False),
        (3, 1, True),
        (0, 8, False),
    ],
)
def test_answers_have_to_end_by_the_terminator(stopped, cut, passes):
    proof = answers_stop(answers(stopped, cut), [5] * (stopped + cut), 100)
    assert proof.passed is passes
    assert proof.figure == stopped / (stopped + cut)
    assert passes is (proof.figure >= float(proof.limit) - 1e-4)


def test_answers_that_could_not_end_in_time_do_not_count():
    proof = answers_stop(answers(100, 100), [5] * 100 + [50] * 100, max_tokens=20)
    assert proof.passed
    assert "100 rows with a longer gold answer" in proof.detail
    assert answers_stop(answers(0, 9), [50] * 9, max_tokens=20).detail.startswith("nothing is shown")


def test_limit_agrees_with_binomial_noise():
    from scipy.stats import binom

    for total in (1, 8, 30, 250, 5000):
        assert binom.sf(most_cut(total), total, 0.5) < 0.05 <= binom.sf(most_cut(total) - 1, total, 0.5)
