"""All usable rows of all sources on disk, before it is known on which side of the split each of them stands.

rows.jsonl        one Example a line
rows.ids          int32, all rows behind one another
rows.learned      bool, same length
rows.facts        FACTS, one record a row
rows.signatures   uint32 [rows, HASHES]: MinHash of each row's text
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.example import Example, Message

# prompt, answer, document, stratum: hashes of exact texts; given: the split that the recipe names the row for;
# line: bytes of the row in rows.jsonl; tokens: all, those before the answer, those learned
FACTS = np.dtype(
    [
        ("prompt", "u8"),
        ("answer", "u8"),
        ("document", "u8"),
        ("stratum", "u8"),
        ("given", "i1"),
        ("source", "i2"),
        ("line", "i4"),
        ("tokens", "i4"),
        ("prompt_tokens", "i4"),
        ("learned", "i4"),
    ]
)


def hash_text(*texts: str) -> int:
    """64 bits of blake2b over the texts: equal texts, equal hashes."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)  # lengths: ("a", "b") is not ("ab", "")
    return int.from_bytes(digest.digest(), "little")


def hash_turns(turns: tuple[Message, ...]) -> int:
    """The hash of a prompt: every turn's role and text."""
    return hash_text(*(part for turn in turns for part in (turn.role, turn.content)))


class Pool:
    """Read access; rows are numbered in the order of their sources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: NDArray[np.void] = np.fromfile(folder / "rows.facts", dtype=FACTS)
        self._lines = np.concatenate([[0], np.cumsum(self.facts["line"], dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def signatures(self) -> NDArray[np.uint32]:
        """MinHash of each row [rows, HASHES], memory-mapped."""
        if not len(self):
            return np.zeros((0, 1), np.uint32)
        flat = np.memmap(self.folder / "rows.signatures", dtype=np.uint32, mode="r")
        return flat.reshape(len(self), -1)

    def example(self, row: int) -> Example:
        """The conversation of one row."""
        return next(self.examples(row, row + 1))

    def examples(self, start: int = 0, stop: int | None = None) -> Iterator[Example]:
        """Conversations of rows start … stop - 1, in order."""
        stop = len(self) if stop is None else stop
        with (self.folder / "rows.jsonl").open("rb") as file:
            file.seek(int(self._lines[start]))
            for _ in range(start, stop):
                yield Example.from_json(json.loads(file.readline()))


def pool_of(folder: Path, examples: list[Example], given: list[int] | None = None) -> Pool:
    """A small pool without token ids or signatures of its own: lengths are counted in words."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = np.zeros(len(examples), dtype=FACTS)
    with (folder / "rows.jsonl").open("wb") as file:
        for row, example in enumerate(examples):
            prompt, answer = example.prompt, example.answer or ""
            words = [sum(len(turn.content.split()) for turn in prompt), len(answer.split()) + 1]
            line = file.write(json.dumps(example.to_json(), ensure_ascii=False).encode() + b"\n")
            facts[row] = (
                hash_turns(prompt), hash_text(answer), hash_text(example.document), 0,
                given[row] if given else 0, 0, line, sum(words), words[0], words[1],
            )  # fmt: skip
    facts.tofile(folder / "rows.facts")
    return Pool(folder)
