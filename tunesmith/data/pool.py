"""All usable rows of all sources on disk, before it is known on which side of the split each of them stands.

rows.*                 texts, ids and masks, as a split of a Run (rows.py)
rows.facts.npy         FACTS, one record a row
rows.signatures.npy    uint32, HASHES a row: MinHash of each row's compared text
rows.affixes.json      what is cut from texts before they are compared (compared.py)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.alike.near import HASHES
from tunesmith.data.compared import NO_AFFIXES, Affixes, compared_text
from tunesmith.example import Example, Message
from tunesmith.rows import Growing, Rows, RowWriter

# id, prompt, answer, document, stratum: hashes of exact texts; text: of the compared one, 0 where nothing is in it;
# given: the split that the recipe names the row for (0 train, 1 validation, 2 test); source: number of its file;
# tokens: all, those before the last answer, those learned; marks: PLAIN | DIRECT | SEVERAL
FACTS = np.dtype(
    [
        ("id", "u8"),
        ("prompt", "u8"),
        ("answer", "u8"),
        ("document", "u8"),
        ("stratum", "u8"),
        ("text", "u8"),
        ("given", "i1"),
        ("source", "i2"),
        ("tokens", "i4"),
        ("prompt_tokens", "i4"),
        ("learned", "i4"),
        ("marks", "u1"),
    ]
)
# marks: plain text; the prompt was encoded by itself as well; more than one stretch is learned
PLAIN, DIRECT, SEVERAL = 1, 2, 4
NAME = "rows"
AFFIXES = f"{NAME}.affixes.json"


def hash_text(*texts: str) -> int:
    """64 bits of blake2b over the texts: equal texts, equal hashes."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)  # lengths: ("a", "b") is not ("ab", "")
    return int.from_bytes(digest.digest(), "little")


def hash_turns(turns: Sequence[Message]) -> int:
    """The hash of a prompt: every turn's role and text."""
    return hash_text(*(part for turn in turns for part in (turn.role, turn.content)))


def facts_of(
    example: Example,
    text: str,
    stratify: str | None,
    given: int,
    source: int,
    tokens: int,
    prompt_tokens: int,
    learned: int,
    marks: int = 0,
) -> tuple[int, ...]:
    """A record of FACTS. `text`: the compared one."""
    return (
        hash_text(example.id),
        hash_turns(example.messages if example.is_text else example.prompt),
        hash_text(*(one for one in (example.answer or "", example.rejected) if one is not None)),
        hash_text(example.document),
        hash_text(example.slices[stratify]) if stratify and stratify in example.slices else 0,
        hash_text(text) if text else 0,
        given, source, tokens, prompt_tokens, learned, marks,
    )  # fmt: skip


class Pool:
    """Read access; rows are numbered in the order of their sources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = Rows.open(folder, NAME)
        self.facts: NDArray[np.void] = np.load(folder / f"{NAME}.facts.npy")
        self.affixes = Affixes.read(folder / AFFIXES)

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def signatures(self) -> NDArray[np.uint32]:
        """MinHash of each row's compared text [rows, HASHES], memory-mapped."""
        flat: NDArray[np.uint32] = np.load(self.folder / f"{NAME}.signatures.npy", mmap_mode="r")
        return flat.reshape(len(self), HASHES)

    def example(self, row: int) -> Example:
        """The conversation of one row."""
        return self.rows.example(row)

    def compared(self, row: int) -> str:
        """The text by which one row is near others."""
        return compared_text(self.example(row), self.affixes)

    def examples(self, start: int = 0, stop: int | None = None) -> Iterator[Example]:
        """Conversations of rows start … stop - 1, in order."""
        return self.rows.examples(start, stop)


def tell_apart(pool: Pool) -> int:
    """Gives rows whose id an earlier row has an id of their own (`7~2`, `7~3` …); returns how many there were."""
    order = np.argsort(pool.facts["id"], kind="stable")
    ids = pool.facts["id"][order]
    repeated = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    if not len(repeated):
        return 0
    first = np.maximum.accumulate(
        np.where(np.concatenate([[True], ids[1:] != ids[:-1]]), np.arange(len(ids)), 0)
    )
    number = dict(zip(order[repeated].tolist(), (repeated - first[repeated] + 1).tolist(), strict=True))
    pool.rows.rewrite(lambda row, example: replace(example, id=f"{example.id}~{number[row]}"), set(number))
    return len(number)


class PoolWriter:
    """Fills a pool block by block."""

    def __init__(self, folder: Path, affixes: Affixes = NO_AFFIXES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        affixes.write(folder / AFFIXES)
        self.rows = RowWriter(folder, NAME)
        self.facts = Growing(folder / f"{NAME}.facts.npy", FACTS)
        self.signatures = Growing(folder / f"{NAME}.signatures.npy", np.uint32)

    def close(self) -> int:
        """Number of rows."""
        self.facts.close()
        self.signatures.close()
        return self.rows.close()
