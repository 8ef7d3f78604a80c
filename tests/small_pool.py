"""A pool of rows without a tokenizer: what the inspection and near-duplicates are tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tunesmith.data.alike.near import signatures
from tunesmith.data.compared import NO_AFFIXES, Affixes, compared_text
from tunesmith.data.pool import FACTS, Pool, PoolWriter, facts_of
from tunesmith.example import Example
from tunesmith.rows import row_line


def pool_of(
    folder: Path, examples: list[Example], given: list[int] | None = None, affixes: Affixes = NO_AFFIXES
) -> Pool:
    """A small pool without token ids: lengths are counted in words."""
    writer = PoolWriter(folder, affixes)
    texts = [compared_text(example, affixes) for example in examples]
    for row, example in enumerate(examples):
        line = row_line(example)
        prompt = sum(len(turn.content.split()) for turn in example.prompt)
        learned = len((example.answer or "").split()) + 1
        writer.rows.append(line, [len(line)], [], [], [0])
        side = given[row] if given else 0
        facts = facts_of(example, texts[row], None, side, 0, prompt + learned, prompt, learned)
        writer.facts.append(np.asarray([facts], dtype=FACTS))
    if examples:
        writer.signatures.append(signatures(texts).ravel())
    writer.close()
    return Pool(folder)
