"""Published figures: only read ones, each marked as of other rows, none about types that nobody asked for."""

from __future__ import annotations

import pytest

from tunesmith.evaluate.published import PUBLISHED, published_for, types_asked
from tunesmith.tasks import make_task


def test_each_level_has_a_figure_that_was_read() -> None:
    for task, metric in (
        ("entities", "mention_f1"),
        ("annotations", "concept_f1"),
        ("entities", "string_f1"),
        ("relations", "relation_f1"),
    ):
        found = published_for(task, metric)
        assert found and all(one["on_other_rows"] and one["source"] for one in found)
        assert all(
            one["read"] in ("repository", "abstract") and one["read"] in one["source"] for one in found
        )
    assert published_for("extraction", "item_f1") == published_for("entities", "relation_f1") == []


def test_figures_name_metrics_that_exist() -> None:
    for one in PUBLISHED:
        assert (
            0 < one.value < 1
            and one.data
            and all(one.metric in make_task(task).metrics() for task in one.tasks)
        )


@pytest.mark.parametrize(
    "types, systems", [({"chemical"}, 1), ({"Disease", "Chemical"}, 6), ({"gene"}, 0), (set(), 0)]
)
def test_figures_about_other_types_are_left_out(types: set[str], systems: int) -> None:
    asked = types_asked([{"types": [one]} for one in types] + [{}])
    assert len(published_for("annotations", "mention_f1", asked)) == systems
