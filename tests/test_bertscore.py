"""BERTScore is the authors' own: bert-score's figures on tiny models made here, from local folders alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

from tunesmith.errors import RecipeError
from tunesmith.evaluate.measured import bertscore
from tunesmith.evaluate.measured.bertscore import Scorer, model_folder, write_bertscore
from tunesmith.evaluate.measured.bertscore_counts import (
    FILE,
    bertscore_counts,
    bertscore_meaning,
    bertscore_metrics,
)
from tunesmith.example import Example

WORDS = "the a patient has flu fever take rest water and . , ibuprofen twice daily for days".split()
GOLDS = [
    "the patient has flu .",
    "take rest and water",
    "fever",
    "the the the patient",
    "take ibuprofen twice daily",
]
SAID = [
    "patient has fever , rest .",
    "take ibuprofen",
    "fever",
    "unknown words here",
    "rest for a days , take water .",
]


def bert(folder: Path, positions: int = 64) -> Path:
    """Three layers of random weights, a word a token."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=positions).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=positions, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def roberta(folder: Path) -> Path:
    """The same with bytes as pieces."""
    folder.mkdir()
    cut = ByteLevelBPETokenizer()
    cut.train_from_iterator(
        GOLDS * 9, vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    cut.save_model(str(folder))
    made = RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=64)
    made.save_pretrained(folder)
    torch.manual_seed(1)
    config = RobertaConfig(
        vocab_size=len(made), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=66, initializer_range=0.5,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    return folder


def ours(folder: Path) -> list[tuple[float, ...]]:
    return [row[0][:3] for row in Scorer.load(str(folder)).score(GOLDS, [[one] for one in SAID])]


def test_figures_are_the_authors(tmp_path: Path) -> None:
    import bert_score

    folder = bert(tmp_path / "bert")
    referee = bert_score.score(SAID, GOLDS, model_type=str(folder), num_layers=3, verbose=False)
    wanted = np.stack([one.numpy() for one in referee], 1)
    assert np.abs(np.array(ours(folder)) - wanted).max() < 1e-5
    # a mutant that matches on another layer is far off
    other = bert_score.score(SAID, GOLDS, model_type=str(folder), num_layers=1, verbose=False)
    assert np.abs(np.array(ours(folder)) - np.stack([one.numpy() for one in other], 1)).max() > 1e-3


def test_figures_of_a_byte_level_model_follow_the_paper(tmp_path: Path) -> None:
    """From the definition, text by text: cosines of all pairs, the best of each, special tokens not counted."""
    scorer = Scorer.load(str(roberta(tmp_path / "roberta")))
    for gold, answer, found in zip(GOLDS, SAID, ours(tmp_path / "roberta"), strict=True):
        vectors, counted = [], []
        for text in (gold, answer):
            ids = scorer.tokenizer(f" {text}")["input_ids"]
            with torch.no_grad():
                hidden = scorer.model(torch.tensor([ids])).last_hidden_state[0].double()
            vectors.append(hidden)
            counted.append([i for i, one in enumerate(ids) if one not in scorer.tokenizer.all_special_ids])
        near = [[torch.cosine_similarity(a, g, dim=0).item() for g in vectors[0]] for a in vectors[1]]
        precision = np.mean([max(near[i]) for i in counted[1]])
        recall = np.mean([max(row[j] for row in near) for j in counted[0]])
        assert found == pytest.approx(
            (precision, recall, 2 * precision * recall / (precision + recall)), abs=1e-5
        )


def test_equal_texts_score_one_and_empty_ones_nothing(tmp_path: Path) -> None:
    scorer = Scorer.load(str(bert(tmp_path / "bert")))
    (same,), (empty,), (no_gold,) = scorer.score([GOLDS[0], GOLDS[0], ""], [[GOLDS[0]], [""], [GOLDS[0]]])
    assert same[:3] == pytest.approx((1, 1, 1), abs=1e-6)
    assert empty[:3] == no_gold[:3] == (0, 0, 0)


def test_what_the_model_cannot_read_is_told(tmp_path: Path) -> None:
    scorer = Scorer.load(str(bert(tmp_path / "bert", positions=8)))
    ((long,), (short,)) = scorer.score(["flu " * 30, "flu"], [["fever"], ["fever"]])
    assert (long[3], short[3]) == (1.0, 0.0)
    rows = [{"made_with": scorer.made_with, "cut": {"tuned": one[3]}} for one in (long, short)]
    told = bertscore_meaning(rows)["bertscore_f1"]
    assert "50.0% of the answers or their golds are longer" in told and scorer.made_with in told


def run_of(folder: Path, **systems: list[str]) -> Any:
    """A run's two folders with predictions."""
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    for name, answers in systems.items():
        lines = [json.dumps({"id": str(i), "answer": one}) for i, one in enumerate(answers)]
        (folder / "predictions" / f"{name}.jsonl").write_text("\n".join(lines))
    return SimpleNamespace(predictions=folder / "predictions", report=folder / "report")


def recipe_of(model: str | None) -> Any:
    return SimpleNamespace(evaluate=SimpleNamespace(bertscore_model=model))


def test_each_system_and_row_gets_a_line_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(str(bert(tmp_path / "bert")))
    examples = [Example.make("?", gold, id=str(i)) for i, gold in enumerate(GOLDS)]
    run = run_of(tmp_path / "run", tuned=GOLDS, base=SAID, other=SAID[:2])
    write_bertscore(recipe, run, examples)
    rows = [json.loads(line) for line in (run.report / FILE).read_text().splitlines()]
    ids = [example.id for example in examples]
    assert bertscore_counts(rows, ids, "other") == {} == bertscore_counts(rows, [*ids, "x"], "tuned")
    tuned, base = (bertscore_counts(rows, ids, name) for name in ("tuned", "base"))
    metric = bertscore_metrics(tuned)["bertscore_f1"]
    assert metric({k: v.sum(keepdims=True) for k, v in tuned.items()}) == pytest.approx([1.0], abs=1e-6)
    assert base["bertscore_f1"] == pytest.approx([row[2] for row in ours(tmp_path / "bert")], abs=1e-6)
    assert "bert (sha256 " in rows[0]["made_with"] and "layer 3 of 3" in rows[0]["made_with"]
    assert bertscore_metrics({}) == {}
    # again: what hasn't changed is not computed again
    asked: list[int] = []
    real = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, *a: (asked.append(len(a[0])), real(self, *a))[1])
    write_bertscore(recipe, run, examples)
    assert asked == []
    write_bertscore(recipe, run_of(tmp_path / "run", base=[*SAID[:4], "rest"]), examples)
    assert asked == [1]
    write_bertscore(recipe_of(None), run, examples)
    assert not (run.report / FILE).exists()


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bertscore.AutoModel, "from_pretrained", lambda *a, **k: pytest.fail("a model was asked for")
    )
    for name, told in (("FacebookAI/roberta-large", "never downloaded"), (str(tmp_path), "config.json")):
        with pytest.raises(RecipeError, match=told):
            Scorer.load(name)
    (tmp_path / "config.json").write_text(
        '{"model_type": "t5", "is_encoder_decoder": true, "num_hidden_layers": 6}'
    )
    with pytest.raises(RecipeError, match="not an encoder"):
        model_folder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 6}')
    with pytest.raises(RecipeError, match="safetensors"):
        model_folder(str(tmp_path))


def test_the_layer_is_that_of_the_authors_table(tmp_path: Path) -> None:
    from bert_score.utils import model2layers

    known = {name.rpartition("/")[2]: layer for name, layer in model2layers.items()}
    assert all(known[name] == layer for name, layer in bertscore._BEST.items())
    named = {
        ("bert", 12): "bert-base-uncased", ("bert", 24): "bert-large-uncased", ("roberta", 12): "roberta-base",
        ("roberta", 24): "roberta-large", ("distilbert", 6): "distilbert-base-uncased",
        ("roberta", 6): "distilroberta-base", ("xlm-roberta", 12): "xlm-roberta-base",
        ("xlm-roberta", 24): "xlm-roberta-large", ("deberta", 12): "deberta-base", ("deberta", 24): "deberta-large",
    }  # fmt: skip
    assert {kind: known[name] for kind, name in named.items()} == bertscore._BEST_OF_KIND
