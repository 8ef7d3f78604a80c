"""Entities and relations against BioCreative's own program and against an oracle of set arithmetic, with mutants."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from annotated_rows import counted
from bio_oracle import Doc, counts, invented, perturbed, read

from tunesmith.data.read import pubtator
from tunesmith.tasks.annotated import entities, mentions, relations
from tunesmith.tasks.annotated.entities import Level

BOTH = ("Chemical", "Disease")


def wrong(pairs: list[tuple[dict[str, Doc], dict[str, Doc]]]) -> list[int]:
    """Numbers of the pairs where ours differ from the oracle's."""
    return [
        i for i, (gold, said) in enumerate(pairs) if counted(gold, said, BOTH) != counts(gold, said, BOTH)
    ]


def pairs_of(docs: dict[str, Doc], seeds: range) -> list[tuple[dict[str, Doc], dict[str, Doc]]]:
    """Each seed perturbs gold and prediction apart."""
    made = []
    for seed in seeds:
        rng = random.Random(seed)
        made.append((perturbed(docs, rng), perturbed(docs, rng)))
    return made


INVENTED = [pair for seed in range(40) for pair in pairs_of(invented(seed), range(seed, seed + 1))]


def test_counts_equal_the_oracles_on_invented_documents() -> None:
    assert wrong(INVENTED) == []
    whole = [counts(gold, said, BOTH) for gold, said in INVENTED]
    assert all(sum(one[level][place] for one in whole) > 50 for level in whole[0] for place in range(3))


def without_type(made: Any) -> Any:
    old = entities._of_mentions

    def mutant(some: Any) -> Level:
        return old([one._replace(type="") for one in some])

    made.setattr(entities, "_of_mentions", mutant)


def keeping_minus_one(made: Any) -> None:
    for where in (mentions, pubtator):
        made.setattr(
            where, "concept_ids", lambda cell: [mentions.concept_id(one) for one in cell.split("|") if one]
        )


def whole_composites(made: Any) -> None:
    for where in (mentions, pubtator):
        made.setattr(where, "concept_ids", lambda cell: [mentions.concept_id(cell)] if cell != "-1" else [])


def pairs_without_order(made: Any) -> None:
    gold_pairs, said_pairs = relations.gold_pairs, relations._said_pairs
    made.setattr(
        relations, "gold_pairs", lambda gold: {tuple(sorted(k)): v for k, v in gold_pairs(gold).items()}
    )
    made.setattr(
        relations,
        "_said_pairs",
        lambda gold, said: [
            one._replace(pairs=tuple(tuple(sorted(pair)) for pair in one.pairs))
            for one in said_pairs(gold, said)
        ],
    )


def repeated_pairs(made: Any) -> None:
    """Each line of a file is a pair of its own."""
    made.setattr(relations, "outcomes", lambda gold, said: [
        relations.Outcome("match" if (r.first, r.second) in relations.gold_pairs(gold) else "wrong_pair", None, None)
        for r in said.relations
    ])  # fmt: skip


MUTANTS = [without_type, keeping_minus_one, whole_composites, pairs_without_order, repeated_pairs]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_differ_from_the_oracle(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert len(wrong(INVENTED)) > len(INVENTED) // 2


# ---- the official sample


def sample(realdata: Path, name: str) -> dict[str, Doc]:
    return read((realdata / "bc5cdr_official_eval_sample" / f"CDR_sample.{name}.PubTator").read_text("utf-8"))


def official(realdata: Path) -> dict[str, tuple[int, int, int]]:
    told = json.loads((realdata / "bc5cdr_official_eval_sample" / "expected.json").read_text("utf-8"))
    return {name: (one["TP"], one["FP"], one["FN"]) for name, one in told.items()}


def ours(realdata: Path) -> dict[str, tuple[int, int, int]]:
    gold = sample(realdata, "gold")
    entity = counted(gold, sample(realdata, "test.DNER"), ["Disease"])
    pair = counted(gold, sample(realdata, "test.CID"), ["Disease"])
    return {
        "mention_Disease": entity["mention"],
        "id_Disease": entity["id"],
        "relation_CID": pair["relation"],
    }


@pytest.mark.realdata
def test_the_official_programs_counts(realdata: Path) -> None:
    found = ours(realdata)
    print(found)
    assert found == official(realdata)


@pytest.mark.realdata
@pytest.mark.parametrize("mutant", [keeping_minus_one, whole_composites])
def test_mutants_differ_from_the_official_counts(
    mutant: Any, realdata: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    assert ours(realdata)["id_Disease"] != official(realdata)["id_Disease"]


@pytest.mark.realdata
def test_two_hundred_perturbations_of_the_sample(realdata: Path) -> None:
    docs = sample(realdata, "gold")
    shipped = _shipped(realdata)
    made = []
    for seed in range(200):
        rng = random.Random(f"sample {seed}")
        some = dict(rng.sample(sorted(docs.items()), 12))
        said = perturbed({pmid: (shipped if seed % 2 else docs)[pmid] for pmid in some}, rng)
        made.append((perturbed(some, rng), said))
    assert wrong(made) == []
    assert len({tuple(counts(gold, said, BOTH).values()) for gold, said in made}) > 195  # no two alike


def _shipped(realdata: Path) -> dict[str, Doc]:
    """The shipped predictions: mentions of one file, relations of the other."""
    pairs = sample(realdata, "test.CID")
    return {
        pmid: Doc(pmid, doc.title, doc.abstract, doc.mentions, pairs[pmid].relations)
        for pmid, doc in sample(realdata, "test.DNER").items()
    }
