"""Figures that others published, to be shown beside a report: always of other rows, never a rival of its systems.

Only figures that were read at their source stand here. `read` says how: `repository` (in the results or notebook of a
public repository), `abstract` (in a paper's abstract). Figures known from somebody's second-hand table are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple


class Published(NamedTuple):
    """One figure. `value` between 0 and 1."""

    tasks: tuple[str, ...]
    metric: str
    types: frozenset[str]
    """Types of entities that it is about; a report that asks for none of them does not show it."""
    data: str
    system: str
    value: float
    source: str
    read: Literal["repository", "abstract"]
    note: str = ""


_ENTITIES, _RELATIONS = ("entities", "annotations"), ("relations", "annotations")
_BOTH, _CHEMICAL, _DISEASE = (
    frozenset({"chemical", "disease"}),
    frozenset({"chemical"}),
    frozenset({"disease"}),
)
_SLM = "github.com/MartinH2k3/SLM-NER, results"
_SEED = "github.com/albertoclemente/medical-ner-fine-tuning, run04"
_CHALLENGE = "Database 2016, baw032"
_TEST = "BC5CDR, official test"

PUBLISHED: tuple[Published, ...] = (
    Published(_ENTITIES, "mention_f1", _BOTH, _TEST, "3.8B model with LoRA", 0.830, _SLM, "repository",
              "chemicals and diseases, strict, sentence by sentence"),
    Published(_ENTITIES, "mention_f1", _BOTH, _TEST, "the same model, untuned", 0.490, _SLM, "repository", "strict"),
    Published(_ENTITIES, "mention_f1", _BOTH, _TEST, "NuExtract, tuned", 0.550, _SLM, "repository", "strict"),
    Published(_ENTITIES, "mention_f1", _BOTH, _TEST, "DeepSeek, prompted", 0.641, _SLM, "repository", "strict"),
    Published(_ENTITIES, "mention_f1", _BOTH, _TEST, "OpenAI, prompted", 0.701, _SLM, "repository", "strict"),
    Published(_ENTITIES, "mention_f1", _CHEMICAL, "BC5CDR", "Llama-3.1-8B with QLoRA", 0.9402,
              "J Biomed Inform 2025, 104896", "abstract", "chemicals alone"),
    Published(_ENTITIES, "concept_f1", _DISEASE, _TEST, "best team of 2015", 0.8646, _CHALLENGE, "abstract",
              "diseases alone; systems gave the ids themselves"),
    Published(_ENTITIES, "concept_f1", _DISEASE, _TEST, "all teams of 2015 together", 0.8889, _CHALLENGE, "abstract",
              "diseases alone; systems gave the ids themselves"),
    Published(_ENTITIES, "string_f1", _CHEMICAL, "BC5CDR train and development, split by row", "3B model with LoRA",
              0.495, _SEED, "repository", "chemicals alone; its test abstracts stood in training"),
    Published(_ENTITIES, "string_f1", _DISEASE, "BC5CDR train and development, split by row", "3B model with LoRA",
              0.575, _SEED, "repository", "diseases alone; its test abstracts stood in training"),
    Published(_RELATIONS, "relation_f1", _BOTH, _TEST, "best team of 2015", 0.5703, _CHALLENGE, "abstract",
              "entities predicted"),
    Published(_RELATIONS, "relation_f1", _BOTH, _TEST, "all teams of 2015 together", 0.6280, _CHALLENGE, "abstract",
              "entities predicted"),
)  # fmt: skip


def published_for(task_name: str, metric: str, types: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Figures of a metric as report.json holds them, in the table's order: {system, value, source, note, data, read}.

    `types`: types of entities that the scored rows ask for; figures about others are left out. None: all.
    """
    return [
        {
            "system": one.system,
            "value": one.value,
            "source": f"{one.source} ({one.read})",
            "note": f"{one.data}: {one.note}" if one.note else one.data,
            "data": one.data,
            "read": one.read,
            "on_other_rows": True,
        }
        for one in PUBLISHED
        if task_name in one.tasks and one.metric == metric and (types is None or one.types <= set(types))
    ]


def types_asked(facts: Sequence[Any]) -> set[str]:
    """Types of entities that rows with these facts ask for."""
    return {str(kind).casefold() for one in facts for kind in one.get("types") or ()}
