"""Systems side by side: all answer the same rows, come and go with the recipe, and never lie in memory together."""

# ruff: noqa: F401, F811  (fixtures)

import gc
import json
import shutil
import weakref

import pytest
from test_evaluate import TEST, always_stops, base, recipe_for, run, said
from tiny_run import recipe, reports
from transformers import AutoModelForCausalLM

from tunesmith import pipeline
from tunesmith.errors import OutOfRoom, RecipeError
from tunesmith.evaluate import evaluate as stage
from tunesmith.evaluate import ready, systems
from tunesmith.evaluate.measured import likelihood
from tunesmith.model.load import load_model
from tunesmith.train import launch
from tunesmith.view.scored import run_task


def everything(base, tmp_path, prompts=("zero-shot", "2-shot", "2-nearest", "mine"), **more):
    (tmp_path / "mine.txt").write_text("You read reports.")
    prompts = [str(tmp_path / "mine.txt") if one == "mine" else one for one in prompts]
    given = {"batch": 6, "decoding": {"max_tokens": 12}, "prompts": prompts, "constrained": True} | more
    return recipe_for(base, evaluate=given, export={"quantized": ["nf4", "int8"], "gguf": ["Q4_K_M"]})


def test_all_systems_answer_the_same_rows(base, run, tmp_path, monkeypatch):
    always_stops(monkeypatch)
    stage.evaluate(everything(base, tmp_path), run)
    told = json.loads((run.report / "systems.json").read_text())
    kinds = {name: one["kind"] for name, one in told.items() if name != "schema_version"}
    assert kinds == {
        "tuned": "tuned", "tuned-constrained": "constrained", "base": "base", "base-constrained": "constrained",
        "zero-shot": "prompt", "2-shot": "prompt", "2-nearest": "prompt", "prompt-mine": "prompt",
        "base-nf4": "quantised", "base-int8": "quantised", "majority": "floor", "nearest": "floor",
    }  # fmt: skip
    assert all(set(told[name]) == {"kind", "shown", "note"} and told[name]["note"] for name in kinds)
    assert len({told[name]["shown"] for name in kinds}) == len(kinds)
    content = json.loads((run.report / "report.json").read_text())
    assert set(content["scores"]) == set(kinds)
    lines = {
        name: [json.loads(line) for line in (run.predictions / f"{name}.jsonl").read_text().split("\n")[:-1]]
        for name in kinds
    }
    for each in lines.values():
        assert [(one["id"], one["prompt"], one["gold"]) for one in each] == [
            (row.id, row.asked, row.answer) for row in TEST
        ]
    asked = [name for name, kind in kinds.items() if kind != "floor"]
    assert len({lines[name][0]["made_by"] for name in asked}) == len(asked)
    answers = {name: [one["answer"] for one in lines[name]] for name in asked}
    # 8 bits may choose the same tokens; what they make likely is another matter, see below
    assert all(answers[name] != answers["base"] for name in asked if name not in ("base", "base-int8"))
    assert all(one.startswith("{") for name in asked if "constrained" in name for one in answers[name])
    nll = [json.loads(line)["nll"] for line in (run.report / "likelihood.jsonl").read_text().split("\n")[:-1]]
    assert set(nll[0]) == {"tuned", "base", "base-nf4", "base-int8"}
    assert len({round(value, 6) for value in nll[0].values()}) == 4


def test_systems_that_the_recipe_no_longer_names_go_and_exported_ones_stay(base, run, tmp_path, monkeypatch):
    always_stops(monkeypatch)
    stage.evaluate(everything(base, tmp_path), run)
    for name in ("merged", "Q4_K_M"):
        shutil.copy(run.predictions / "tuned.jsonl", run.predictions / f"{name}.jsonl")
    shutil.copy(run.predictions / "tuned.jsonl", run.predictions / "3-shot.jsonl.partial")
    (run.predictions / "choice").mkdir()
    (run.predictions / "choice" / "live.jsonl").write_text("")
    kept = (run.predictions / "2-shot.jsonl").read_bytes()
    stage.evaluate(everything(base, tmp_path, ["2-shot"], constrained=False), run)
    left = {path.name for path in run.predictions.iterdir()}
    ours = {"tuned", "base", "2-shot", "base-nf4", "base-int8", "majority", "nearest", "merged", "Q4_K_M"}
    assert left == {f"{name}.jsonl" for name in ours} | {"choice"}
    assert (run.predictions / "2-shot.jsonl").read_bytes() == kept
    assert set(json.loads((run.report / "report.json").read_text())["scores"]) == ours
    kinds = {name: one["kind"] for name, one in systems.described(run).items()}
    assert (kinds["merged"], kinds["2-shot"], kinds["nearest"]) == ("exported", "prompt", "floor")


def test_a_base_that_is_quantised_already_is_not_quantised_again(base):
    model = {"base": str(base), "dtype": "float32", "quantize": "nf4"}
    named = systems.answering(recipe(model=model, export={"quantized": ["nf4", "int8"]}))
    assert [one.name for one in named] == ["tuned", "base"]
    assert all("held in nf4" in one.note for one in named)


def test_the_systems_of_a_task_come_with_its_own_floors(base, run, monkeypatch):
    always_stops(monkeypatch)
    plain = run_task(recipe_for(base), run)
    plain.floors = lambda train, examples: {"dictionary": ["{}" for _ in examples]}
    monkeypatch.setattr(ready, "run_task", lambda *given: plain)
    stage.evaluate(recipe_for(base), run)
    assert said(run, "dictionary") == ["{}"] * len(TEST)
    assert systems.described(run)["dictionary"]["kind"] == "floor"
    monkeypatch.undo()
    always_stops(monkeypatch)
    stage.evaluate(recipe_for(base), run)
    assert not (run.predictions / "dictionary.jsonl").exists()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_whole_models_never_lie_in_memory_together(base, run, tmp_path, monkeypatch, method):
    always_stops(monkeypatch)
    if method == "full":
        shutil.rmtree(run.adapter)
        AutoModelForCausalLM.from_pretrained(base).save_pretrained(run.adapter)
    alive: list[weakref.ref] = []

    def watched(load):
        def loading(*given, **named):
            gc.collect()
            assert not [one for one in alive if one() is not None]
            model = load(*given, **named)
            alive.append(weakref.ref(model))
            return model

        return loading

    for name in ("load_tuned", "load_as_trained", "load_model"):
        monkeypatch.setattr(stage, name, watched(getattr(stage, name)))
    made = everything(base, tmp_path, ["zero-shot"])
    stage.evaluate(made.model_copy(update={"tune": made.tune.model_copy(update={"method": method})}), run)
    assert len(alive) == {"lora": 3, "full": 4}[method]  # tuned, (base,) nf4, int8


def test_running_out_of_memory_is_told_on_a_cpu_too(base, run, monkeypatch):
    said = "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried"
    monkeypatch.setattr(stage, "answer_rows", lambda *given, **named: raises(RuntimeError(said)))
    with pytest.raises(OutOfRoom, match="out of memory while answering") as caught:
        stage.evaluate(recipe_for(base), run)
    assert caught.value.exit_code == 75 and "evaluate.batch" in caught.value.fix
    monkeypatch.setattr(stage, "answer_rows", lambda *given, **named: raises(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        stage.evaluate(recipe_for(base), run)


def raises(error):
    raise error


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"constrained": True, "task": "text"}, "the task text has no JSON schema"),
        ({"prompts": ["40-shot"]}, "labelled training rows"),
        ({"prompts": ["10-shot"]}, "leave no room"),
        ({"metrics": ["json:loads"]}, "can't be called"),
    ],
)
def test_what_evaluate_would_refuse_is_refused_before_training(base, run, monkeypatch, asked, told):
    monkeypatch.setattr(launch, "train", lambda *given: pytest.fail("trained"))
    monkeypatch.setattr(stage, "load_tuned", lambda *given: pytest.fail("loaded a model"))
    made = recipe_for(base, evaluate={"decoding": {"max_tokens": 12}} | asked)
    for call in (pipeline._train, stage.evaluate):
        with pytest.raises(RecipeError, match=told):
            call(made, run)
