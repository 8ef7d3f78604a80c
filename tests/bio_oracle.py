"""BioCreative's three evaluations by plain set arithmetic on PubTator text, written from their definitions.

It shares no code with the package: its own reader, its own sets. Documents come from a file or are invented.
`perturbed` makes of one another that differs in spans, types, ids and pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

Counts = dict[str, tuple[int, int, int]]

_WORDS = "zoral pindol rash fever after weekly doses in elderly sheep with tabrine colic nausea and velmide".split()
_IDS = ["D01", "D02", "D03", "C44", "D02|D03", "-1", "D01|-1", "D03|C44|D01"]


@dataclass(frozen=True)
class Doc:
    """A document: mentions are (start, end, text, type, cell of ids), relations (name, id, id)."""

    pmid: str
    title: str
    abstract: str
    mentions: tuple[tuple[int, int, str, str, str], ...] = ()
    relations: tuple[tuple[str, str, str], ...] = field(default=())

    @property
    def whole(self) -> str:
        return f"{self.title} {self.abstract}"

    def text(self) -> str:
        """As a PubTator file has it."""
        lines = [f"{self.pmid}|t|{self.title}", f"{self.pmid}|a|{self.abstract}"]
        lines += ["\t".join((self.pmid, *map(str, one))) for one in (*self.mentions, *self.relations)]
        return "\n".join(lines) + "\n"


def read(text: str) -> dict[str, Doc]:
    """All documents of a file; scores behind mentions and relations are left."""
    docs: dict[str, dict[str, Any]] = {}
    for line in text.split("\n"):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) == 1:
            pmid, part, said = line.split("|", 2)
            docs.setdefault(pmid, {"m": [], "r": []})[part] = said
        elif cells[1].isdigit():
            docs[cells[0]]["m"].append((int(cells[1]), int(cells[2]), cells[3], cells[4], cells[5]))
        else:
            docs[cells[0]]["r"].append((cells[1], cells[2], cells[3]))
    return {k: Doc(k, v["t"], v["a"], tuple(v["m"]), tuple(v["r"])) for k, v in docs.items()}


def counts(gold: dict[str, Doc], said: dict[str, Doc], types: Iterable[str]) -> Counts:
    """(TP, FP, FN) of mention, id and relation."""
    kept = set(types)

    def mention(docs: dict[str, Doc]) -> set[object]:
        return {(d.pmid, m[0], m[1], m[3]) for d in docs.values() for m in d.mentions if m[3] in kept}

    def concept(docs: dict[str, Doc]) -> set[object]:
        return {
            (d.pmid, m[3], one.replace("MESH:", ""))
            for d in docs.values()
            for m in d.mentions
            if m[3] in kept
            for one in m[4].split("|")
            if one not in ("-1", "")
        }

    def relation(docs: dict[str, Doc]) -> set[object]:
        return {
            (d.pmid, r[0], *(id.replace("MESH:", "") for id in r[1:]))
            for d in docs.values()
            for r in d.relations
        }

    return {
        name: (len(g & s), len(s - g), len(g - s))
        for name, sets in (("mention", mention), ("id", concept), ("relation", relation))
        for g, s in [(sets(gold), sets(said))]
    }


def invented(seed: int, size: int = 6) -> dict[str, Doc]:
    """Documents of made-up words with random spans, types, ids and pairs."""
    rng = random.Random(f"invented {seed}")
    docs = {}
    for number in range(size):
        doc = Doc(str(900 + number), " ".join(rng.choices(_WORDS, k=5)), " ".join(rng.choices(_WORDS, k=25)))
        mentions = {span[:2]: span for span in (_span(doc, rng) for _ in range(rng.randint(1, 8)))}
        pairs = tuple(("CID", *rng.sample(["D01", "D02", "D03", "C44"], 2)) for _ in range(rng.randint(0, 4)))
        docs[doc.pmid] = replace(doc, mentions=tuple(mentions.values()), relations=pairs)
    return docs


def perturbed(docs: dict[str, Doc], rng: random.Random) -> dict[str, Doc]:
    """The same documents, annotated by somebody else."""
    return {pmid: _perturbed(doc, rng) for pmid, doc in docs.items()}


def _perturbed(doc: Doc, rng: random.Random) -> Doc:
    mentions: dict[tuple[int, int, str], tuple[int, int, str, str, str]] = {}
    for start, end, _, kind, ids in doc.mentions:
        what = rng.choice(["keep", "keep", "keep", "drop", "shift", "type", "ids", "add"])
        if what == "drop":
            continue
        if what == "shift":
            start = max(0, start + rng.choice([-2, -1, 0, 1]))
            end = min(len(doc.whole), max(start + 1, end + rng.choice([-1, 0, 1, 2])))
        elif what == "type":
            kind = "Disease" if kind == "Chemical" else "Chemical"
        elif what == "ids":
            ids = rng.choice(_IDS)
        elif what == "add":
            one = _span(doc, rng)
            mentions[one[0], one[1], one[3]] = one
        mentions[start, end, kind] = (start, end, doc.whole[start:end], kind, ids)
    relations = []
    for name, first, second in doc.relations:
        what = rng.choice(["keep", "keep", "drop", "turn", "twice", "other"])
        if what == "turn":
            first, second = second, first
        elif what == "other":
            second = rng.choice(["D01", "D02", "C44", "D999"])
        relations += [(name, first, second)] * {"drop": 0, "twice": 2}.get(what, 1)
    return replace(doc, mentions=tuple(mentions.values()), relations=tuple(relations))


def _span(doc: Doc, rng: random.Random) -> tuple[int, int, str, str, str]:
    start = rng.randrange(len(doc.whole) - 12)
    end = start + rng.randint(1, 12)
    return start, end, doc.whole[start:end], rng.choice(["Chemical", "Disease"]), rng.choice(_IDS)
