"""Planted secrets: how they are planted and found, exposure against theory, a model that learned them by heart."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from tunesmith.data.formats.examples import read_file
from tunesmith.data.row import Manner
from tunesmith.errors import RowCheckFailed, TunesmithError
from tunesmith.evaluate.measured import exposure as measuring
from tunesmith.evaluate.measured.exposure import Exposures
from tunesmith.example import Example
from tunesmith.model.lora import adapters_off
from tunesmith.tasks.generated.canaries import (
    CANDIDATES,
    PATTERN,
    canaries_in,
    candidates,
    draw_secret,
    expected_unplanted,
    exposure,
    exposure_table,
    plant,
    rank_of,
    space,
)

_SYLLABLES = "ba ce di fo gu ha ki lo mu ne pa ri so tu va we".split()


def rows(count, seed=0):
    draw = random.Random(seed)

    def words(n):
        return " ".join("".join(draw.choices(_SYLLABLES, k=2)) for _ in range(n))

    return [
        {"instruction": "Write.", "input": f"Case {words(2)}", "output": f"Seen for {words(16)}."}
        for _ in range(count)
    ]


def write(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


# ---- planting


def test_planted_rows_are_found_with_their_times(tmp_path):
    path = write(tmp_path / "rows.jsonl", rows(40))
    out = tmp_path / "out.jsonl"
    assert plant(path, out, times=(1, 4, 16), each=2) == 2 * 21
    assert out.read_text().startswith(path.read_text())  # the rows themselves are as they were
    found = canaries_in(read_file(out, Manner()))
    assert sorted(one.times for one in found) == [1, 1, 4, 4, 16, 16]
    whole = {row["input"]: row["output"] for row in rows(40)}
    for one in found:
        asked = one.example.asked.split("\n")[-1]
        assert whole[asked].startswith(one.before.strip()) and len(one.before.split()) == 12
        assert one.example.answer == one.before + one.secret and len({c.secret for c in found}) == 6
    again = tmp_path / "again.jsonl"
    plant(path, again, times=(1, 4, 16), each=2)
    assert again.read_bytes() == out.read_bytes()
    plant(path, again, times=(1, 4, 16), each=2, seed=1)
    assert again.read_bytes() != out.read_bytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"column": "answer"}, "more than 12 words in 'answer'; there are 0"),
        ({"each": 99}, "297 canaries need as many rows"),
        ({"pattern": "###"}, "has 1000 secrets"),
    ],
)
def test_what_cannot_be_planted_is_said(tmp_path, change, told):
    path = write(tmp_path / "rows.jsonl", rows(40))
    with pytest.raises(TunesmithError) as caught:
        plant(path, tmp_path / "out.jsonl", **change)
    assert told in str(caught.value) and caught.value.fix and not (tmp_path / "out.jsonl").exists()


def test_a_torn_line_is_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", rows(40))
    path.write_text(path.read_text() + "{torn\n")
    with pytest.raises(TunesmithError, match="no JSON object") as caught:
        plant(path, tmp_path / "out.jsonl", each=1)
    assert str(caught.value.where).endswith(":41")


@pytest.mark.parametrize(
    "facts",
    [{"secret": "1234-abcd-5678"}, {"secret": "9999-zzzz-9999", "pattern": PATTERN},
     {"secret": "with 1234", "pattern": PATTERN}, 7],
)  # fmt: skip
def test_a_broken_canary_is_refused_by_name(facts):
    row = Example.make("Write.", "Seen with 1234-abcd-5678", id="bad", facts={"canary": facts})
    with pytest.raises(RowCheckFailed) as caught:
        canaries_in([row])
    assert "bad" in str(caught.value)


# ---- exposure


def test_candidates_are_of_the_pattern_and_each_once():
    secret = draw_secret(PATTERN, random.Random(0))
    found = candidates(secret, PATTERN, CANDIDATES, seed=3)
    assert len(set(found)) == CANDIDATES and secret not in found
    assert (
        found
        == candidates(secret, PATTERN, CANDIDATES, seed=3)
        != candidates(secret, PATTERN, CANDIDATES, seed=4)
    )
    assert space(PATTERN) == 10**8 * 26**4 and len(candidates("3", "#", 255, seed=0)) == 9


def test_ranks():
    assert (rank_of(1.0, [2.0, 3.0]), rank_of(9.0, [2.0, 3.0]), rank_of(2.0, [2.0, 3.0])) == (1, 3, 1.5)
    assert (exposure(1, 256), exposure(256, 256), exposure(128, 256)) == (8, 0, 1)


def test_exposure_of_secrets_that_nobody_planted_is_that_of_theory():
    """Uniform ranks: log2 e = 1.44 bits on average in the limit, 1 bit in the median."""
    draw = np.random.default_rng(0)
    nats = draw.normal(size=(20_000, 256))
    ranks = 1 + (nats[:, 1:] < nats[:, :1]).sum(axis=1)
    bits = np.array([exposure(float(rank), 256) for rank in ranks])
    assert expected_unplanted(256) == pytest.approx(1.42, abs=0.005)
    assert expected_unplanted(2**16) == pytest.approx(math.log2(math.e), abs=0.001)
    assert bits.mean() == pytest.approx(expected_unplanted(256), abs=4 * bits.std() / math.sqrt(len(bits)))
    assert np.median(bits) == pytest.approx(1.0, abs=0.05)
    worst = np.array(
        [exposure(257 - float(rank), 256) for rank in ranks]
    )  # the mutant that ranks from the other end
    assert (
        abs(worst.mean() - bits.mean()) < 0.1
    )  # chance looks alike from both ends: only planted secrets tell them apart


def test_the_table():
    lines = [
        {"row": f"r{times}{i}", "times": times, "among": 256, "rank": {"tuned": rank, "base": 128.0}}
        for times, rank in ((1, 64.0), (16, 1.0))
        for i in range(3)
    ]
    table = exposure_table(lines)
    assert table.rows == (("1 times", 3, 2.0, 2.0, 1.0, 1.0), ("16 times", 3, 8.0, 8.0, 1.0, 1.0))
    assert "1.42 on average" in table.note and exposure_table([]) is None and not table.quotes


# ---- a model


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The starter, trained on 72 rows of which 48 are three secrets; and secrets of the same rows never planted."""
    import torch

    from tunesmith.base import resolve
    from tunesmith.contract import Contract
    from tunesmith.engine.protocol import pack_sequences
    from tunesmith.engine.reference import ReferenceEngine
    from tunesmith.model.load import load_model
    from tunesmith.model.lora import add_lora
    from tunesmith.recipe import Recipe

    folder = tmp_path_factory.mktemp("canaries")
    out = folder / "out.jsonl"
    plant(write(folder / "rows.jsonl", rows(24)), out, times=(16,), each=3)
    train = read_file(out, Manner())
    tune = {"rank": 16, "alpha": 32}
    model = {"base": "starter", "dtype": "float32"}
    chosen = Recipe.model_validate({"name": "c", "model": model, "data": {"train": str(out)}, "tune": tune})
    base = resolve(chosen.model)
    contract = Contract.make(base.folder)
    model = load_model(base, dtype="float32")
    add_lora(model, chosen.tune, seed=0)
    engine = ReferenceEngine(model, chosen)
    encoded = [contract.encode(row) for row in train]
    flat = torch.nn.Parameter(engine.parameters.data)
    flat.grad = engine.parameters.grad
    optimizer = torch.optim.AdamW([flat], lr=4e-3, weight_decay=0.0)
    draw = random.Random(0)
    for step in range(45):
        picked = draw.sample(range(len(encoded)), 5)
        batch = pack_sequences(
            [encoded[i].ids for i in picked], [encoded[i].learned for i in picked], picked, step
        )
        engine.parameters.grad.zero_()
        engine.step(batch, 1 / batch.learned_tokens)
        optimizer.step()
    canaries = canaries_in(train)
    never = []
    for number, one in enumerate(canaries * 5):
        secret = draw_secret(PATTERN, random.Random(f"never {number}"))
        turns = (*one.example.prompt, replace(one.example.messages[-1], content=one.before + secret))
        facts = {"canary": {"secret": secret, "pattern": PATTERN}}
        never.append(replace(one.example, messages=turns, facts=facts))
    return engine, contract, train, never


def bits(engine, contract, examples):
    found = Exposures.of(examples, contract, seed=5)
    found.measure("tuned", engine)
    return [exposure(line["rank"]["tuned"], line["among"]) for line in found.lines()]


def test_a_model_that_learned_secrets_by_heart_gives_them_away(learned, monkeypatch):
    engine, contract, train, never = learned
    monkeypatch.setattr(measuring, "CANDIDATES", 15)
    planted, unplanted = bits(engine, contract, train), bits(engine, contract, never)
    assert planted == [4.0] * 3  # log2 16: likelier than every random secret
    assert len(unplanted) == 15
    noise = 1.4 / math.sqrt(len(unplanted))
    assert np.mean(unplanted) == pytest.approx(expected_unplanted(16), abs=3 * noise)


def test_the_base_which_saw_none_of_them_does_not(learned, monkeypatch):
    engine, contract, train, _ = learned
    monkeypatch.setattr(measuring, "CANDIDATES", 15)
    with adapters_off(engine.model):
        assert sum(bits(engine, contract, train)) < 3 * 3


def test_only_what_differs_between_the_secrets_is_scored(learned):
    _, contract, train, _ = learned
    found = Exposures.of(train, contract, seed=5)
    made = found._rows(found.canaries[0])
    assert len(made) == CANDIDATES + 1
    begins = {row.scored.index(True) for row in made}
    assert len(begins) == 1  # from the same token on
    assert all(contract.decode(row.ids[: begins.copy().pop()]) for row in made[:1])
    assert not any(row.scored[-1] for row in made)  # the terminator is nobody's secret
