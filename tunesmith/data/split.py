"""Sets rows aside for validation and test: whole documents, by seed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tunesmith.errors import RowError
from tunesmith.example import Example


def split_rows(
    examples: Sequence[Example], shares: Mapping[str, float], seed: int
) -> dict[str, list[Example]]:
    """`shares` of the rows (each below 1) under their names, the rest under "train"; a document stands on one side.

    Documents are drawn in an order that only `seed` and their number decide. RowError where a side would be empty.
    """
    documents = list(dict.fromkeys(example.document for example in examples))
    # raw words: the same in every numpy version, which `permutation` does not promise
    order = np.argsort(np.random.Philox(key=seed).random_raw(len(documents)), kind="stable")
    sizes: dict[str, int] = {}
    for example in examples:
        sizes[example.document] = sizes.get(example.document, 0) + 1
    side: dict[str, str] = {}
    queue = [documents[i] for i in order]
    for name, share in shares.items():
        wanted = round(share * len(examples))
        while wanted > 0 and queue:
            document = queue.pop()
            side[document] = name
            wanted -= sizes[document]
    parts: dict[str, list[Example]] = {name: [] for name in ("train", *shares)}
    for example in examples:
        parts[side.get(example.document, "train")].append(example)
    for name, part in parts.items():
        if not part and (name == "train" or shares[name] > 0):
            raise RowError(
                f"the split leaves no {name} rows", where="data.split", fix="give more rows or other shares"
            )
    return {name: part for name, part in parts.items() if part}
