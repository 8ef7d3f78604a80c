"""The data stage as a whole: rows in, splits and report out, kept once for all runs that need them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tunesmith.base import resolve
from tunesmith.data import ingest
from tunesmith.data.levels import verdict
from tunesmith.data.prepare import Prepared, build
from tunesmith.errors import RowCheckFailed, RowError
from tunesmith.recipe import Recipe

MODEL = {"base": "starter"}


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count: int, **more: object) -> list[dict[str, object]]:
    words = "liver lung bone scan dose week blood cell stage node left right upper lower mass".split()
    draw = np.random.default_rng(0)
    return [
        {"prompt": " ".join(draw.choice(words, 30)) + f" {i}.", "completion": f"It is case {i}."} | more
        for i in range(count)
    ]


def prepared(folder: Path, **data: object) -> Prepared:
    recipe = Recipe.model_validate({"name": "one", "model": MODEL, "data": data})
    made = build(recipe, resolve(recipe.model), folder / ".rows")
    verdict(recipe, made.report, made.folder / "findings.jsonl")
    return made


def bytes_of(made: Prepared) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(made.folder.iterdir())}


def test_the_same_files_however_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write(tmp_path / "train.jsonl", rows(1300))
    shares = {"validation": 0.1, "test": 0.1}
    alone = prepared(tmp_path / "a", train=train, split=shares)
    monkeypatch.setattr(ingest, "SMALL", 0)
    monkeypatch.setattr("tunesmith.data.fill.default_workers", lambda: 3)
    several = prepared(tmp_path / "b", train=train, split=shares)
    assert bytes_of(alone) == bytes_of(several)
    assert sum(len(split) for split in alone.splits.values()) == 1300


def test_a_row_encoded_in_a_batch_is_the_row_encoded_alone(tmp_path: Path) -> None:
    made = prepared(tmp_path, train=write(tmp_path / "train.jsonl", rows(40)))
    train = made.splits["train"]
    for number in range(40):
        encoded = made.contract.encode(train.example(number))
        assert train.ids(number).tolist() == encoded.ids and train.learned(number).tolist() == encoded.learned
    assert train.learned_counts.tolist() == [int(train.learned(i).sum()) for i in range(40)]


def test_what_decides_rows_decides_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path / "train.jsonl", rows(20))
    first = prepared(tmp_path, train=train).folder
    assert prepared(tmp_path, train=train, checks={"phi": "ignore"}).folder == first  # levels only judge
    assert "prepared before" in capsys.readouterr().err
    others = [
        prepared(tmp_path, train=train, max_length=1000).folder,
        prepared(tmp_path, train=train, system="You answer.").folder,
        prepared(tmp_path, train=write(tmp_path / "train.jsonl", rows(21))).folder,
    ]
    assert len({first, *others}) == 4


def test_a_level_judges_rows_that_were_prepared_for_another(tmp_path: Path) -> None:
    double = [*rows(20), {"prompt": rows(1)[0]["prompt"], "completion": "It is something else."}]
    train = write(tmp_path / "train.jsonl", double)
    prepared(tmp_path, train=train, checks={"contradiction": "ignore"})
    with pytest.raises(RowCheckFailed, match=r"contradiction: \d of 21 rows") as error:
        prepared(tmp_path, train=train, checks={"contradiction": "error"})
    assert error.value.exit_code == 3 and "contradiction: warn" in str(error.value)
    assert len(list((tmp_path / ".rows").iterdir())) == 1


def test_a_killed_preparation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write(tmp_path / "train.jsonl", rows(20))

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.data.fill.inspect", dies)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path, train=train)
    assert not list((tmp_path / ".rows").iterdir())
    assert len(prepared(tmp_path, train=train).splits["train"]) == 20


def test_ids_that_repeat_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = [row | {"id": "patient" if i in (3, 7, 12) else f"r{i}"} for i, row in enumerate(rows(20))]
    made = prepared(tmp_path, train=write(tmp_path / "train.jsonl", same))
    ids = [example.id for example in made.splits["train"].examples()]
    assert [ids[3], ids[7], ids[12]] == ["patient", "patient~2", "patient~3"] and len(set(ids)) == 20
    assert {example.document for example in made.splits["train"].examples()} == {
        f"train.jsonl:{line}" for line in range(1, 21)
    }  # equal ids are no document
    assert "2 rows have the id of another row" in capsys.readouterr().err


@pytest.mark.parametrize("weight", [0.5, 1, 2, 2.25])
def test_a_weight_says_how_often_an_epoch_reads_a_row(weight: float, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jsonl", rows(40))
    heavy = write(tmp_path / "heavy.jsonl", [row | {"prompt": f"other {row['prompt']}"} for row in rows(400)])
    made = prepared(tmp_path, train=[{"path": plain}, {"path": heavy, "weight": weight}])
    sources = [example.source.split(":")[0] for example in made.splits["train"].examples()]
    assert sources.count("plain.jsonl") == 40
    assert sources.count("heavy.jsonl") == pytest.approx(400 * weight, rel=0.12)
    if weight == 2:
        assert sources.count("heavy.jsonl") == 800


def test_context_is_cut_at_its_front_and_nothing_else(tmp_path: Path) -> None:
    long = [
        {
            "instruction": "Name the last word.",
            "input": " ".join(f"word{i}" for i in range(200, 300)),
            "output": "word299",
        }
    ]
    short = [
        {"instruction": "Name the last word.", "input": f"one word{i}", "output": f"word{i}"}
        for i in range(30)
    ]
    train = write(tmp_path / "train.jsonl", long + short)
    with pytest.raises(RowError, match="1 of 31 rows are longer than"):
        prepared(tmp_path, train=train, max_length=200)
    made = prepared(tmp_path, train=train, max_length=200, overlong="trim_context")
    cut, split = made.splits["train"].example(0), made.splits["train"]
    question = cut.messages[0].content
    assert question.startswith("Name the last word.\n\nword") and question.endswith(" word299")
    assert cut.answer == "word299" and 150 < split.lengths[0] <= 200
    assert made.report["trimmed"]["rows"] == 1 and made.report["trimmed"]["tokens"] > 100
    # a prompt that is all instruction has no context to cut
    only = [{"instruction": long[0]["input"], "output": "word299"}]
    with pytest.raises(RowError, match="no context that could be cut"):
        prepared(
            tmp_path,
            train=write(tmp_path / "only.jsonl", only + short),
            max_length=200,
            overlong="trim_context",
        )


def test_plain_text_is_learned_whole_and_once(tmp_path: Path) -> None:
    text = "\n\n".join(" ".join(f"w{i}{j}" for j in range(5 + 40 * (i % 3))) for i in range(30))
    (tmp_path / "book.txt").write_text(text)
    made = prepared(tmp_path, train=str(tmp_path / "book.txt"), max_length=100)
    contract, train = made.contract, made.splits["train"]
    assert max(train.lengths) <= 100 and min(train.lengths) > 5
    learned = [train.ids(i)[train.learned(i)].tolist() for i in range(len(train))]
    whole = [
        one for part in text.split("\n\n") for one in [*contract.tokens_of(part), contract.document_end_id]
    ]
    assert [one for row in learned for one in row] == whole
    assert all(train.ids(i)[0] == contract.bos_id and not train.learned(i)[0] for i in range(len(train)))
    assert [(proof.name, proof.passed) for proof in made.proofs()] == [
        ("bos_count_train", True),
        ("no_pad_learned_train", True),
        ("all_learned_train", True),
    ]


def test_plain_text_with_a_token_that_is_not_learned_fails_its_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.contract import Contract, Encoded

    right = Contract.encode_batch

    def wrong(self: Contract, examples: object) -> list[object]:
        return [
            Encoded(one.ids, [*one.learned[:-1], False])  # type: ignore[union-attr]
            for one in right(self, examples)  # type: ignore[arg-type]
        ]

    monkeypatch.setattr(Contract, "encode_batch", wrong)
    (tmp_path / "book.txt").write_text("a paragraph of some words\n\n" * 20)
    made = prepared(tmp_path, train=str(tmp_path / "book.txt"))
    assert [proof.name for proof in made.proofs() if not proof.passed] == ["all_learned_train"]


def test_learned_mask_by_position_survives_a_mutant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proofs look at what is stored: an encoding that learns one token of the prompt fails them."""
    from tunesmith.contract import Contract, Encoded

    right = Contract.encode_batch

    def wrong(self: Contract, examples: object) -> list[object]:
        return [
            Encoded(one.ids, [*one.learned[:5], True, *one.learned[6:]])  # type: ignore[union-attr]
            for one in right(self, examples)  # type: ignore[arg-type]
        ]

    monkeypatch.setattr(Contract, "encode_batch", wrong)
    made = prepared(tmp_path, train=write(tmp_path / "train.jsonl", rows(20)))
    failed = {proof.name for proof in made.proofs() if not proof.passed}
    assert failed == {"prompt_is_prefix_train", "terminator_learned_train"}


def test_files_that_number_their_rows_alike_are_not_of_one_document(tmp_path: Path) -> None:
    one, two = rows(60), [row | {"prompt": f"other {row['prompt']}"} for row in rows(60)]
    made = prepared(
        tmp_path,
        train=write(tmp_path / "a.jsonl", [row | {"id": i} for i, row in enumerate(one)]),
        validation=write(tmp_path / "b.jsonl", [row | {"id": i} for i, row in enumerate(two)]),
    )
    assert {check["name"]: check["rows"] for check in made.report["inspection"]["checks"]}["group_leak"] == 0
    assert made.report["splits"]["train"]["documents"] == 60


def test_what_a_processor_makes_of_one_row_stays_on_one_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "several.py").write_text(
        "from tunesmith.example import Example\n"
        "def make(row):\n"
        "    words = row['prompt'].split()\n"
        "    return [Example.make(' '.join(order), row['completion']) for order in (words, words[::-1])]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    train = write(tmp_path / "train.jsonl", rows(60))
    made = prepared(tmp_path, train=train, processor="several:make", split={"validation": 0.2})
    sides = [{example.source for example in made.splits[name].examples()} for name in ("train", "validation")]
    assert len(sides[1]) == 12 and not sides[0] & sides[1]


def test_rows_of_two_kinds_are_proved_each_by_their_own_rules(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jsonl", [{"text": f"a paragraph with number {i}"} for i in range(30)])
    asked = write(tmp_path / "asked.jsonl", rows(20))
    for sources in ([plain, asked], [asked, plain]):
        made = prepared(tmp_path, train=[{"path": path} for path in sources])
        told = {proof.name: proof.detail for proof in made.proofs()}
        assert "(20 rows)" in told["terminator_learned_train"] and "(30 rows)" in told["all_learned_train"]
        assert "(50 rows)" in told["bos_count_train"]


def test_rows_that_a_weight_leaves_out_are_nowhere(tmp_path: Path) -> None:
    plain = rows(40)
    other = write(tmp_path / "other.jsonl", rows(80)[40:])
    leak = write(
        tmp_path / "l.jsonl", [{"prompt": row["prompt"], "completion": "something else"} for row in plain]
    )
    made = prepared(
        tmp_path,
        train=[{"path": other}, {"path": leak, "weight": 0.3}],
        validation=write(tmp_path / "held.jsonl", plain),
        checks={"exact_leak": "warn"},
    )
    trained = [one.source for one in made.splits["train"].examples() if one.source.startswith("l.jsonl")]
    found = {check["name"]: check["rows"] for check in made.report["inspection"]["checks"]}
    assert 0 < len(trained) < 40 and found["exact_leak"] == len(trained)
    with pytest.raises(RowError, match=r"weight 1e-06 of l\.jsonl leaves none of its 40 rows"):
        prepared(tmp_path, train=[{"path": other}, {"path": leak, "weight": 1e-6}])


def test_limits_count_the_rows_that_are_too_long(tmp_path: Path) -> None:
    long = [
        {"prompt": f"row {i} " + "word " * (250 if i % 2 else 20), "completion": f"yes {i}"}
        for i in range(40)
    ]
    made = prepared(tmp_path, train=write(tmp_path / "train.jsonl", long), max_length=512, overlong="drop")
    at = {one["limit"]: one for one in made.report["inspection"]["limits"]}
    assert at[512]["over"] == at[512]["answer_lost"] == 20 and at[1024]["over"] == 0
    assert at[512]["answer_tokens_share"] == pytest.approx(0.5, abs=0.02)
    assert made.report["overlong"]["of"] == 40


def test_a_limit_loses_only_what_is_learned_behind_it(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "hello"}, {"role": "assistant", "content": "a " * 100},
        {"role": "user", "content": "w " * 600}, {"role": "assistant", "content": "the end"},
    ]  # fmt: skip
    made = prepared(
        tmp_path, train=write(tmp_path / "train.jsonl", [{"messages": talk}] * 2), max_length=2048
    )
    at = {one["limit"]: one for one in made.report["inspection"]["limits"]}
    learned = made.splits["train"].learned(0)
    assert at[512]["answer_tokens_share"] == pytest.approx(learned[512:].sum() / learned.sum())
    assert learned[:512].sum() > 90


def test_pairs_of_a_processor_keep_their_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs.py").write_text(
        "from tunesmith.example import Example\n"
        "def make(row):\n"
        "    return Example.make(row['prompt'] + ' call 617-555-0143', row['completion'], rejected='no')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RowCheckFailed, match="phi"):
        prepared(tmp_path, train=write(tmp_path / "train.jsonl", rows(30)), processor="pairs:make")
