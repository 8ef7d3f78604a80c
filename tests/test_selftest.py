"""doctor --selftest on the starter: all proofs pass, and each fails on the mistake it stands against."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith import starter
from tunesmith.contract import DATE, Contract, Encoded
from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_host import Outer
from tunesmith.engine.plan import MicroBatchPlan
from tunesmith.engine.protocol import Engine, PackedBatch
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.proof import Proof
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows, write_rows
from tunesmith.run import Run
from tunesmith.selftest import golden, lesson, prove

COLOURS = "red green blue grey pink white black brown amber".split()
PASSED = {
    "template_golden",
    "template_handed_on",
    "packed_equals_unpacked",
    "packed_loss",
    "packed_gradient",
    "accumulation_exact",
    "eight_rows_learned",
    "adapter_has_effect",
    "adapter_reloads",
    "answers_stop",
    "answers_repeat",
    "merged_equals_fp32_merge",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Nine short rows; the last two ask the same and answer differently, which nobody can learn by heart."""
    lines = [{"prompt": f"Stage {i}?", "completion": f"The colour is {c}."} for i, c in enumerate(COLOURS)]
    lines.append(lines[-1] | {"completion": "It has none."})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def recipe(project: Path, **sections: Any) -> Recipe:
    plain: dict[str, Any] = {
        "name": "mine",
        "model": {"base": "starter", "dtype": "float32"},
        "data": {"train": str(project / "rows.jsonl"), "checks": {"contradiction": "ignore"}},
        "tune": {"rank": 8, "alpha": 16.0, "dropout": 0.1},
    }
    return Recipe.model_validate(plain | {k: plain.get(k, {}) | v for k, v in sections.items()})


def outcomes(project: Path, wanted: Recipe | None = None) -> dict[str, Proof]:
    (project / "work").mkdir()
    made = prove.prove(wanted or recipe(project), project / "work")
    return {proof.name: proof for proof in made if isinstance(proof, Proof)}


def failed(proofs: dict[str, Proof]) -> set[str]:
    return {name for name, proof in proofs.items() if not proof.passed}


def test_quantised_in_half_precision_with_another_template(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson, "ENOUGH", 0.02)
    model = {"quantize": "nf4", "dtype": "bfloat16", "template": "plain"}
    proofs = outcomes(project, recipe(project, model=model))
    assert set(proofs) == PASSED and failed(proofs) == set()


def test_all_weights(project: Path) -> None:
    proofs = outcomes(project, recipe(project, tune={"method": "full"}))
    assert set(proofs) == PASSED - {"adapter_has_effect", "merged_equals_fp32_merge"}
    assert failed(proofs) == set()


def test_a_sound_base_passes_every_proof_and_nothing_is_left(project: Path) -> None:
    place = project / "tmp"
    place.mkdir()
    (project / "recipe.yaml").write_text(json.dumps(recipe(project).to_json()))
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith.cli", "doctor", "--selftest", "recipe.yaml", "--json"],
        cwd=project,
        env=os.environ | {"TMPDIR": str(place), "COLUMNS": "80", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    *shown, last = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(proof["passed"] for proof in json.loads(last)["proofs"])
    assert {proof["name"] for proof in json.loads(last)["proofs"]} == PASSED
    assert shown[-1].startswith("all 12 proofs passed") and max(map(len, shown)) <= 80
    assert not list(place.iterdir())
    assert sorted(path.name for path in project.iterdir()) == ["recipe.yaml", "rows.jsonl", "tmp"]


def test_a_failed_proof_is_exit_code_3(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.verbs import selftest

    monkeypatch.setattr(prove, "prove", lambda recipe, folder: [Proof("one", False, 1.0, 0.0, "x")])
    result = selftest.selftest(recipe(project))
    assert result["exit"] == 3 and result["proofs"][0]["name"] == "one"


def test_what_is_left_out_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row: nothing can be packed with it. Whatever is not proved stands beside what is."""
    from tunesmith.verbs import selftest

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(lesson, "STEPS", 1)
    (project / "rows.jsonl").write_text('{"prompt": "Stage?", "completion": "Red."}\n')
    result = selftest.selftest(recipe(project, tune={"method": "full"}))
    assert {*result["left_out"]} | {one["name"] for one in result["proofs"]} == PASSED
    assert result["left_out"]["accumulation_exact"] == "they need two rows, and there is one"
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("left out packed_equals_unpacked, packed_loss") for line in lines)
    assert max(map(len, lines)) <= 80


# ---- mutants


class Leaking(ReferenceEngine):
    """Rows of a stream without borders between them."""

    def __init__(self, engine: Engine) -> None:
        vars(self).update(vars(engine))

    def _hidden(self, batch: PackedBatch) -> Tensor:
        ends = torch.tensor([0, batch.tokens], dtype=torch.int32)
        return super()._hidden(dataclasses.replace(batch, cu_seqlens=ends, max_length=batch.tokens))


def test_packing_that_leaks(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = prove.choose_engine
    monkeypatch.setattr(prove, "choose_engine", lambda *given: Leaking(choose(*given)))
    monkeypatch.setattr(lesson, "STEPS", 2)
    assert failed(outcomes(project)) >= {"packed_equals_unpacked", "packed_loss", "packed_gradient"}


def test_an_adapter_with_a_flipped_tensor(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = prove.adapter.write_adapter

    def flipped(recipe: Recipe, run: Run, *others: Any) -> None:
        write(recipe, run, *others)
        path = run.adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if "lora_B" in name)
        save_file(tensors | {name: -tensors[name]}, path, metadata={"format": "pt"})

    monkeypatch.setattr(prove.adapter, "write_adapter", flipped)
    monkeypatch.setattr(lesson, "STEPS", 4)
    assert "adapter_reloads" in failed(outcomes(project))


def test_a_base_that_does_not_learn(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "rate", lambda model: 1e-6)
    monkeypatch.setattr(lesson, "STEPS", 5)
    assert failed(outcomes(project)) >= {"eight_rows_learned", "answers_repeat"}


def test_another_terminator_in_the_rows(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is learned as the end is not what generation stops at: the commonest bug of fine-tuning."""
    right = prove.eight_rows

    def wrong(run: Run) -> Rows:
        rows, contract = right(run), Contract.load(run.contract_folder)
        pairs = []
        for number in range(len(rows)):
            ids, learned = rows.ids(number).copy(), rows.learned(number).copy()
            ids[learned & (ids == contract.terminator_id)] = contract.pad_id
            pairs.append((rows.example(number), Encoded(ids.tolist(), learned.tolist())))
        write_rows(run.data, "eight", pairs)
        return Rows.open(run.data, "eight")

    monkeypatch.setattr(prove, "eight_rows", wrong)
    monkeypatch.setattr(lesson, "ENOUGH", 0.02)
    proofs = outcomes(project)
    assert "answers_stop" in failed(proofs)
    assert proofs["eight_rows_learned"].passed  # the loss alone says nothing of it


def test_a_merge_that_lost_a_layer(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = prove.read_deltas
    monkeypatch.setattr(prove, "read_deltas", lambda folder: dict(list(read(folder).items())[1:]))
    monkeypatch.setattr(lesson, "STEPS", 4)
    assert "merged_equals_fp32_merge" in failed(outcomes(project))


# ---- templates

DATED = (
    "{{ bos_token }}{% if not date_string is defined %}"
    "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n{{ said }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def tokenizer(folder: Path, template: str) -> Path:
    """The starter's tokenizer with a template of its own."""
    folder.mkdir()
    for name in ("tokenizer.json", "special_tokens_map.json"):
        shutil.copy(starter.base_folder() / name, folder / name)
    config = json.loads((starter.base_folder() / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return folder


def with_template(folder: Path, old: str, new: str) -> Contract:
    """The contract of the tokenizer in `folder`, wrong in one place and taken for its own."""
    own = Contract.make(folder).template
    assert old in own
    file = folder.with_suffix(".jinja")
    file.write_text(own.replace(old, new))
    mutant = Contract.make(folder, template=str(file))
    mutant.template_name = "own"
    return mutant


def test_a_dated_template_is_golden_and_its_mutants_are_not(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "dated", DATED)
    contract = Contract.make(folder)
    assert DATE in contract.render(golden.CONVERSATIONS["a question"], answer_next=True)
    assert golden.tokenizer_agrees(contract, folder).passed
    assert golden.saved_tokenizer_agrees(contract).passed
    for old, new in (
        ("{{ date_string }}", "27 Jul 2024"),
        ("{{ said }}", ""),
        ("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"),
        ("{% for m in messages %}", "{% for m in messages[-2:] %}"),
    ):
        proof = golden.tokenizer_agrees(with_template(folder, old, new), folder)
        assert not proof.passed, old
        assert int(proof.figure) >= 1 and "ours" in proof.detail
    lost = golden.tokenizer_agrees(with_template(folder, "{{ said }}", ""), folder)
    assert lost.figure == sum("system" in name for name in golden.CONVERSATIONS)


def test_a_template_that_only_asks_the_clock(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "clock", DATED.replace("{{ date_string }}", "{{ strftime_now('%d %b %Y') }}")
                       .replace("date_string", "other"))  # fmt: skip
    contract = Contract.make(folder)
    assert golden.tokenizer_agrees(contract, folder).passed
    assert golden.saved_tokenizer_agrees(contract).passed


def test_a_template_that_refuses_a_system_prompt_is_refused_by_both(tmp_path: Path) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + DATED
    folder = tokenizer(tmp_path / "refusing", refusing)
    contract = Contract.make(folder)
    assert golden.tokenizer_agrees(contract, folder).passed
    lenient = with_template(folder, "{{ raise_exception('no system') }}", "")
    assert "theirs refuses it" in golden.tokenizer_agrees(lenient, folder).detail


def test_a_tokenizer_that_is_another_one(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "one", DATED)
    contract = Contract.make(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["model"]["merges"] = content["model"]["merges"][:100]
    path.write_text(json.dumps(content), "utf-8")
    proof = golden.tokenizer_agrees(contract, folder)
    assert not proof.passed and "same text" in proof.detail


# ---- the eight rows


def test_eight_short_rows_with_different_prompts(project: Path) -> None:
    run = Run(project / "mine")
    run.path.mkdir()
    prove.prepare(recipe(project), run)
    train = Rows.open(run.data, "train")
    picked = lesson.pick(train)
    prompts = {train.example(number).prompt for number in picked}
    assert len(picked) == len(prompts) == lesson.ROWS
    assert int(np.max(train.lengths[picked])) <= int(np.max(train.lengths))


def test_rates_by_what_they_act_on(project: Path) -> None:
    from tunesmith.base import resolve
    from tunesmith.train.build import build_model

    def of(**tune: Any) -> float:
        wanted = recipe(project, tune=tune)
        return lesson.rate(build_model(wanted, resolve(wanted.model), torch.device("cpu")))

    assert of(rank=16, alpha=32.0) == pytest.approx(1e-3)
    assert of(rank=16, alpha=16.0) == pytest.approx(2e-3)
    assert of(rank=64, alpha=16.0) == pytest.approx(4e-3)  # capped
    assert of(method="full") == pytest.approx(0.25 / 256)


def test_answers_are_made_with_embedding_and_head_at_home(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card so small that the plan keeps them in host memory."""
    places, usual, place = list[bool](), FusedEngine.plan, Outer.place

    def away(self: FusedEngine, *args: Any) -> MicroBatchPlan:
        return dataclasses.replace(usual(self, *args), outer_on_host=True)

    def noted(self: Outer, *, on_host: bool) -> None:
        places.append(on_host)
        place(self, on_host=on_host)

    def asked(*args: Any) -> list[Proof]:
        assert places[-1] is False
        return []

    monkeypatch.setattr(FusedEngine, "plan", away)
    monkeypatch.setattr(Outer, "place", noted)
    monkeypatch.setattr(lesson, "STEPS", 2)
    monkeypatch.setattr(lesson, "answers_repeat", asked)
    outcomes(project, recipe(project, train={"engine": "fused"}))
    assert True in places
