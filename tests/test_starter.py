"""The starter: reports that keep their promises, and a base that was trained on none of them."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tunesmith import starter
from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.example import Message
from tunesmith.starter import reports, values
from tunesmith.templates import NAMED

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import starter_text
import starter_tokenizer
import starter_words

BASE = Path(starter.__file__).parent / "base"


def words(text: str) -> str:
    """The text's words in small letters, one space around each: phrases are then found as substrings."""
    return " " + " ".join(re.findall(r"[\w%+-]+", text.lower())) + " "


def items(row: dict[str, object]) -> set[str]:
    output = row["output"]
    assert isinstance(output, dict)
    return {item for value in output.values() if value for item in value.split("; ")}


# ---- reports


def test_rows_are_the_same_every_time_and_fewer_are_a_prefix() -> None:
    assert [len(reports.rows(s)) for s in ("train", "validation", "test")] == [2000, 200, 300]
    assert reports.rows("train", 50) == reports.rows("train")[:50]
    assert reports.rows("train", 50) != reports.rows("train", 50, seed=1)


def test_answers_stand_in_their_reports_and_a_sixth_of_each_field_is_null() -> None:
    train = reports.rows("train")
    for row in [*train, *reports.rows("test")]:
        assert tuple(row["output"]) == values.FIELDS
        assert all(item in row["input"] for item in items(row)), row["id"]
    for field in values.FIELDS:
        share = sum(row["output"][field] is None for row in train) / len(train)
        assert 0.13 < share < 0.21, field


def test_test_rows_are_new_combinations() -> None:
    known = [*reports.rows("train"), *reports.rows("validation"), *reports.rows("train", 500, seed=1)]
    texts, answers = {r["input"] for r in known}, {json.dumps(r["output"]) for r in known}
    for row in reports.rows("test"):
        assert row["input"] not in texts
        assert json.dumps(row["output"]) not in answers


def test_no_unseen_value_in_any_training_row() -> None:
    known = [*reports.rows("train"), *reports.rows("validation")]
    text = words("\n".join(r["input"] + "\n" + json.dumps(r["output"]) for r in known))
    test = reports.rows("test")
    unseen = [r for r in test if r["slices"]["values"] == "unseen"]
    assert len(unseen) == len(test) / 3
    leaked = {item for row in unseen for item in items(row) if words(item) in text}
    assert not leaked
    # what the values are made of: genes, drugs, organs, tumours
    parts = [values._ORGANS, values._TUMOURS, values._GENES, values._MARKERS, values._DRUGS, values._SITES]
    for table in parts:
        names = table["unseen"].split("," if "," in table["unseen"] else " ")
        assert not [name for name in names if words(name) in text]
    # the same search finds the values of the other rows
    seen = {item for row in test if row["slices"]["values"] == "seen" for item in items(row)}
    assert sum(words(item) in text for item in seen) > 0.3 * len(seen)


def test_write_gives_the_rows_as_json_lines(tmp_path: Path) -> None:
    paths = reports.write(tmp_path)
    lines = paths["test"].read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == reports.rows("test")


# ---- the base's files


def test_base_is_small_and_shaped_for_kernels_and_quants() -> None:
    folder = starter.base_folder()
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    for name in ("hidden_size", "intermediate_size", "vocab_size"):
        assert config[name] % 256 == 0
    assert config["max_position_embeddings"] >= 4096
    assert config["tie_word_embeddings"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8_000_000
    training = json.loads((folder / "training.json").read_text())
    assert training["fewest_copies_of_a_token"] >= 1000


def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(starter.SHA256, "model.safetensors", "0" * 64)
    with pytest.raises(ModelError, match=r"model\.safetensors is not the one"):
        starter.base_folder()


def test_its_template_is_llama_3s() -> None:
    own = Contract.make(starter.base_folder())
    meta = Contract.make(starter.base_folder(), template="llama3")
    turns = (
        Message("system", "Be brief."),
        Message("user", " Hi \n"),
        Message("assistant", '{"a": 1}', True),
    )
    assert own.template_name != "llama3" and meta.template == NAMED["llama3"]
    for answer_next in (True, False):
        assert own.render(turns, answer_next) == meta.render(turns, answer_next)
    assert own.terminator == "<|eot_id|>"
    assert (
        Tokenizer.from_file(str(BASE / "tokenizer.json")).id_to_token(own.pad_id)
        == "<|finetune_right_pad_id|>"
    )


def test_the_script_still_makes_the_shipped_tokenizer() -> None:
    made = json.loads(starter_tokenizer.build().to_str())
    shipped = json.loads((BASE / "tokenizer.json").read_text("utf-8"))
    assert made["model"] == shipped["model"]
    assert [t["content"] for t in made["added_tokens"]] == [t["content"] for t in shipped["added_tokens"]]


# ---- the base's training text


@pytest.fixture(scope="module")
def writer() -> starter_text.Writer:
    return starter_text.Writer(Tokenizer.from_file(str(BASE / "tokenizer.json")))


@pytest.fixture(scope="module")
def text_rows(writer: starter_text.Writer) -> list[starter_text.Row]:
    return writer.rows(7, 2500)


def leaks(texts: Iterable[str]) -> set[str]:
    """Labels, values and sentences of the cancer reports that occur in `texts`."""
    slot = r"\\\{\w*\\\}"
    templates = [t for group in reports.TEMPLATES.values() for t in group]
    templates += [*reports._FILLERS, *reports._OPENINGS, *(decoy for _, decoy in reports._DECOYS)]
    patterns = [re.compile(re.sub(slot, ".+", re.escape(t))) for t in templates]
    found: set[str] = set()
    for text in texts:
        words = re.findall(r"[\w+-]+", text.lower())
        phrases = {*words, *map(" ".join, pairwise(words))}
        found |= phrases & starter_words.BANNED
        for sentence in re.split(r"(?<=\.)\s+", text):
            found |= {p.pattern for p in patterns if p.fullmatch(sentence)}
    return found


def test_the_base_read_no_label_value_or_sentence_of_the_reports(
    writer: starter_text.Writer, text_rows: list[starter_text.Row]
) -> None:
    assert set(values.FIELDS) <= starter_words.BANNED
    assert not leaks(writer.tokenizer.decode(row.ids) for row in text_rows)
    # the search finds what it looks for: in each report, a value and a sentence
    for row in reports.rows("test", 30):
        found = leaks([row["input"]])
        assert found & starter_words.BANNED and found - starter_words.BANNED


def test_rows_put_together_from_ids_are_the_tokenizers_own(
    writer: starter_text.Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        writer, "_raw", lambda length, among: writer.text("raw")
    )  # raw ids are no tokenised text
    for row in writer.rows(3, 400):
        text = writer.tokenizer.decode(row.ids, skip_special_tokens=False)
        assert writer.tokenizer.encode(text, add_special_tokens=False).ids == list(row.ids)


def test_every_token_is_copied(writer: starter_text.Writer) -> None:
    writer._pools(random.Random(0))
    writer.copied = []
    for _ in range(1200):
        writer.copy()
    assert set(writer.copied) == set(range(writer.count)) - writer.special
    quoted: set[int] = set()
    for _ in range(12_000):
        quoted.update(writer._raw(3, writer.quotable).bare)
    assert quoted == set(writer.quotable)
    assert len(writer.quotable) > 0.97 * writer.count


def test_the_shipped_weights_extract_from_held_out_text(writer: starter_text.Writer) -> None:
    """Whole rows right, keys named in the instruction or known by heart; unlearned weights get none."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(starter.base_folder(), dtype=torch.float32)
    writer._pools(random.Random("held out"))
    writer.copied = []
    rows = [task(writer) for task in [starter_text.Writer.named, starter_text.Writer.domain] * 8]
    rows = [row for row in rows if len(row.ids) < 700]

    def right() -> float:
        with torch.no_grad():
            answers = [
                model(input_ids=torch.tensor([r.ids])).logits[0, r.start - 1 : -1].argmax(-1) for r in rows
            ]
        return sum(a.tolist() == list(r.ids[r.start :]) for a, r in zip(answers, rows, strict=True)) / len(
            rows
        )

    assert right() > 0.7
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.zero_()
    assert right() < 0.2
