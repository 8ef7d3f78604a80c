"""Synthetic cancer reports with their answer in seven fields: the rows behind `data.train: starter`.

A report is some sentences, one for each field that it mentions, between sentences that say nothing of the fields or
name a value that isn't the patient's. An answer's items stand in the report letter for letter; several items of one
field are joined by "; ". Whether an answer may occur in training, validation or test is decided by a hash of the
answer, so test reports are new combinations whatever the numbers of rows and the seeds. A third of the test rows
(slice values=unseen) say only values that no training row holds.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.starter.values import FIELDS, draw

INSTRUCTION = "Extract the cancer findings from the report."
SIZES = {"train": 2000, "validation": 200, "test": 300}
NULL_SHARE = 0.17

TEMPLATES = {
    "cancer_type": (
        "Biopsy confirmed {}.",
        "Histology showed {}.",
        "Diagnosis: {}.",
        "Pathology was consistent with {}.",
        "{who} was diagnosed with {} last spring.",
        "{who} has a history of {} and returns for review.",
        "The specimen contained {} with clear margins.",
        "Known {}, referred by the local clinic.",
    ),
    "stage": (
        "Disease was staged as {}.",
        "Clinical stage {} at presentation.",
        "Stage: {}.",
        "Imaging put the tumor at stage {}.",
        "The board agreed on stage {} disease.",
        "Final pathologic stage was {}.",
        "It was stage {} when first seen.",
    ),
    "gene_mutation": (
        "Sequencing found {}.",
        "NGS panel: {}.",
        "Molecular testing revealed {}.",
        "The tumor carries {}.",
        "Mutations detected: {}.",
        "A gene panel came back with {}.",
        "Genomic profiling identified {} in the sample.",
    ),
    "biomarker": (
        "Immunohistochemistry: {}.",
        "Staining showed {}.",
        "Markers: {}.",
        "Biomarker testing gave {}.",
        "IHC was reported as {}.",
        "The lab reported {} on the core sample.",
        "Marker workup: {}, repeated once.",
    ),
    "treatment": (
        "{who} was treated with {}.",
        "{who} received {} for six cycles.",
        "Therapy: {}.",
        "{who} started {} in March.",
        "Treatment consisted of {}.",
        "We gave {} without delay.",
        "The plan of care was {}, well tolerated.",
        "First-line {} was begun.",
    ),
    "response": (
        "Restaging showed {}.",
        "Best response was {}.",
        "Response: {}.",
        "After three months there was {}.",
        "Follow-up scans indicated {}.",
        "The outcome was {} by CT.",
        "At reassessment, {} was noted.",
    ),
    "metastasis_site": (
        "Metastases were seen in the {}.",
        "It had spread to the {}.",
        "Metastatic sites: {}.",
        "PET showed distant lesions in the {}.",
        "Secondary deposits involve the {}.",
        "New metastases to the {} were found.",
        "There was metastatic involvement of the {}.",
    ),
}
_OPENINGS = (
    "A {age}-year-old {person} was seen in clinic.",
    "{age}-year-old {person}, seen today.",
    "Review of a {age}-year-old {person}.",
    "This {age}-year-old {person} attended with family.",
    "Report on a {person} aged {age}.",
)
_FILLERS = (
    "Blood pressure was {n}/{m} mmHg.",
    "Appetite is good and weight is stable at {m} kg.",
    "{who} lives alone and walks daily.",
    "Next visit in {w} weeks.",
    "No fever or chills were reported.",
    "Blood counts were within normal limits.",
    "{who} stopped smoking {w} years ago.",
    "Performance status remains {p}.",
    "The family was informed of the plan.",
    "Sleep has improved since the last visit.",
)
# they name a value that is not the patient's finding
_DECOYS = (
    ("cancer_type", "Family history: {} in an aunt."),
    ("treatment", "{who} declined {} some years ago."),
    ("gene_mutation", "A brother was tested for {}, without result."),
)
_AND = {
    "gene_mutation": (" and ", ", ", " with "),
    "biomarker": (" and ", ", ", "; "),
    "treatment": (" and ", ", ", " plus ", " followed by "),
    "metastasis_site": (" and ", ", ", " and the "),
}


def _bucket(answer: dict[str, str | None]) -> str:
    """The split that may hold this answer: one in ten for validation, one in five for test, the rest for training."""
    digest = hashlib.sha256(json.dumps(answer, sort_keys=True).encode()).digest()[0] % 10
    return "validation" if digest == 0 else "test" if digest < 3 else "train"


def _items(field: str, which: str, rng: random.Random) -> list[str]:
    most = 3 if field == "treatment" else 2 if field in _AND else 1
    wanted = rng.choice((1, 1, 2, most)) if most > 1 else 1
    return list(dict.fromkeys(draw(field, which, rng) for _ in range(wanted)))


def _answer(which: str, rng: random.Random) -> dict[str, list[str]]:
    """Items of every field; an empty list where the report won't mention it. Never all empty."""
    while True:
        answer = {f: [] if rng.random() < NULL_SHARE else _items(f, which, rng) for f in FIELDS}
        if any(answer.values()):
            return answer


def _report(answer: dict[str, list[str]], rng: random.Random) -> str:
    female = rng.random() < 0.5
    who = rng.choice(("The patient", "She" if female else "He"))
    told = [f for f in FIELDS if answer[f]]
    rng.shuffle(told)
    sentences = [
        rng.choice(TEMPLATES[field]).format(rng.choice(_AND.get(field, ("",))).join(answer[field]), who=who)
        for field in told
    ]
    for _ in range(rng.choice((0, 1, 1, 2))):
        numbers = {"n": rng.randrange(100, 160), "m": rng.randrange(50, 99), "w": rng.randrange(2, 13)}
        filler = rng.choice(_FILLERS).format(who=who, p=rng.randrange(3), **numbers)
        sentences.insert(rng.randrange(len(sentences) + 1), filler)
    if rng.random() < 0.15:
        field, template = rng.choice(_DECOYS)
        sentences.append(template.format(draw(field, "seen", rng), who=who))
    if rng.random() < 0.7:
        person = rng.choice(("woman", "lady")) if female else rng.choice(("man", "gentleman"))
        sentences.insert(0, rng.choice(_OPENINGS).format(age=rng.randrange(31, 89), person=person))
    return " ".join(sentences)


def _stream(split: str, seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"{split}/{seed}")
    texts: set[str] = set()
    number = 0
    while True:
        which = "unseen" if split == "test" and number % 3 == 2 else "seen"
        items = _answer(which, rng)
        output = {field: "; ".join(items[field]) or None for field in FIELDS}
        report = _report(items, rng)
        if report in texts or (which == "seen" and _bucket(output) != split):
            continue
        texts.add(report)
        yield {
            "id": f"{split}-{number:05d}",
            "instruction": INSTRUCTION,
            "input": report,
            "output": output,
            "document": f"{split}-{number:05d}",
            "slices": {"values": which},
        }
        number += 1


def rows(split: str, n: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """`n` rows (2,000, 200 and 300 unless given) of `split`: train, validation or test.

    The same call gives the same rows on every machine; fewer rows are a prefix of more. KeyError for another split.
    """
    stream = _stream(split, seed)
    return [next(stream) for _ in range(SIZES[split] if n is None else n)]


def write(folder: Path, seed: int = 0) -> dict[str, Path]:
    """train.jsonl, validation.jsonl and test.jsonl in `folder`; returns their paths by split."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {split: folder / f"{split}.jsonl" for split in SIZES}
    for split, path in paths.items():
        lines = (json.dumps(row, ensure_ascii=False) for row in rows(split, seed=seed))
        path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return paths
