"""Tag sequences as answers: scores, the lenient reading, and schemes that are none."""

from __future__ import annotations

import pytest
from test_tasks_entities import scores

from tunesmith.example import Example
from tunesmith.tasks.annotated import tag_sequence

GOLD_TAGS, WRONG_TAGS = "B-D I-D O B-C", "I-D I-D O B-C"


def tag_f1(said: str = WRONG_TAGS, gold: str = GOLD_TAGS) -> float:
    tagged = Example.make("Colic of sheep zoral", gold, id="r", facts={"kind": "entities"})
    return round(scores(said, tagged)["mention_f1"], 3)


def test_a_wrong_tag_sequence_scores_two_thirds() -> None:
    assert tag_f1() == 0.667
    assert tag_f1(GOLD_TAGS) == tag_f1("colic\tB-D\nof\tI-D\nsheep\tO\nzoral\tB-C") == 1.0
    assert tag_f1("B-D I-C O B-C") == 0.5 and tag_f1("B-D O O B-D") == 0.0 and tag_f1("- colic") == 0.0
    assert tag_f1("B-D B-D O B-C") == 0.4


def test_the_lenient_reading_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """seqeval's default: an I- that follows nothing begins an entity."""

    def lenient(tags: list[str]) -> list[tuple[int, int, str]]:
        made: list[tuple[int, int, str]] = []
        for place, tag in enumerate(tags):
            prefix, _, kind = tag.partition("-")
            if prefix == "I" and made and made[-1][1:] == (place, kind):
                made[-1] = (made[-1][0], place + 1, kind)
            elif prefix in "BI":
                made.append((place, place + 1, kind))
        return made

    monkeypatch.setattr("tunesmith.tasks.annotated.mentions.entities_of", lenient)
    assert tag_f1() == 1.0


def test_other_schemes_are_no_tags() -> None:
    assert (
        tag_sequence.read_tags("B-D E-D O S-C") is None
        and tag_sequence.read_tags("B-12 is a vitamin") is None
    )
