"""Likelihoods of both sides of a pair: the answer's own tokens alone, on the same prompt."""

from dataclasses import replace

import pytest
import torch
from tiny_run import recipe, reports, write_byte_tokenizer, write_run
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.evaluate.measured.likelihood import Measured
from tunesmith.model.load import load_model
from tunesmith.rows import Rows

PAIRS = [replace(row, rejected=f"worse: {row.answer} – ೧") for row in reports(5, seed=3)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = write_byte_tokenizer(tmp_path_factory.mktemp("base"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=262, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def measured(base, tmp_path_factory):
    rows = [*PAIRS, replace(reports(1, seed=9)[0], id="no pair")]
    run = write_run(tmp_path_factory.mktemp("run"), reports(4), test=rows)
    contract, stored = Contract.load(run.contract_folder), Rows.open(run.data, "test")
    made = Measured.of(stored, range(len(rows)), contract)
    chosen = recipe(model={"base": str(base), "dtype": "float32", "template": "llama3"})
    model = load_model(resolve(chosen.model), dtype="float32")
    model.model.norm.requires_grad_(True)
    made.measure("base", ReferenceEngine(model, chosen))
    return contract, made, made.lines([row.id for row in rows])


def test_the_worse_answer_against_transformers(base, measured):
    contract, _, lines = measured
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    for line, row in zip(lines, PAIRS, strict=False):
        prompt = contract.prompt_ids(row.prompt)
        answer = list(row.rejected.encode())
        ids = torch.tensor([prompt + contract._ids(row.rejected)])
        with torch.no_grad():
            logp = torch.log_softmax(model(ids).logits[0], -1)
        nats = -sum(logp[t - 1, ids[0, t]].item() for t in range(len(prompt), ids.shape[1]))
        assert line["rejected_nll"]["base"] == pytest.approx(nats, rel=1e-5)
        assert (
            line["rejected_bytes"] == line["rejected_tokens"] == len(answer)
        )  # a byte a token; no terminator
        assert line["rejected_nll"]["base"] != line["nll"]["base"]


def test_a_row_that_is_no_pair_has_one_side(measured):
    _, made, lines = measured
    assert (
        len(made.rejected) == len(PAIRS) and "rejected_nll" not in lines[-1] and lines[-1]["nll"]["base"] > 0
    )


def test_both_sides_stand_behind_the_same_prompt(measured):
    _, made, _ = measured
    for better, worse in zip(made.gold, made.rejected, strict=False):
        prompt = better.scored.index(True)
        assert prompt == worse.scored.index(True) and better.ids[:prompt] == worse.ids[:prompt]
        assert (
            worse.ids[-1] == better.ids[-1] and not worse.scored[-1]
        )  # the terminator is there and is not scored


def test_scoring_the_better_answer_twice_would_be_seen(measured):
    """The mutant whose worse side is the better one has every pair a tie."""
    _, made, lines = measured
    assert all(line["rejected_nll"] != line["nll"] for line in lines[:-1])
    twice = Measured(made.gold[:-1], made.gold[:-1], {"base": (made.nats["base"][0][:-1],) * 2})
    assert all(line["rejected_nll"] == line["nll"] for line in twice.lines([row.id for row in PAIRS]))
