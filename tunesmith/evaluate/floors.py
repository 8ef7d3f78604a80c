"""Answers that need no model: what a fine-tune has to beat.

majority   each field's (or the whole answer's) most common value among the training answers
nearest    the answer of the training row whose text is nearest by TF-IDF: copying, which on synthetic data goes far

A task may have floors of its own beside these (its `floors`, as tasks/annotated/dictionary.py has them for entities).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.example import Example
from tunesmith.tasks import Task
from tunesmith.tasks.normalise import words

_CELLS = 20_000_000  # similarities held at once


def majority(task: Task, train: Sequence[Example], examples: Sequence[Example]) -> list[str]:
    """The same answer for every row."""
    golds = [task.parse(example.answer or "") for example in train]
    answer = task.common_answer([gold for gold in golds if gold.value is not None])
    return [answer] * len(examples)


def nearest(train: Sequence[Example], examples: Sequence[Example]) -> list[str]:
    """Each row answered as its nearest training row was; the first one of equals."""
    return [train[int(alike.argmax())].answer or "" for alike in likeness(train, examples)]


def likeness(train: Sequence[Example], examples: Sequence[Example]) -> Iterator[NDArray[np.float64]]:
    """For each row, how like it is every training row: cosine of TF-IDF, [train]. All 0 where there are no words.

    The words of tasks/normalise.py, each counted as 1 + ln(times) (a word said ten times isn't ten times as telling),
    times scikit-learn's smooth idf, ln((1 + rows) / (1 + rows with the word)) + 1, of the training rows.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [example.asked for example in train]
    if not any(words(text) for text in texts):
        yield from (np.zeros(len(train)) for _ in examples)  # nothing to be near to
        return
    # our own words: scikit-learn's cut Indic scripts to pieces
    vectors = TfidfVectorizer(analyzer=words, sublinear_tf=True)
    known = vectors.fit_transform(texts)
    asked = vectors.transform([example.asked for example in examples])
    block = max(1, _CELLS // len(train))
    for begin in range(0, len(examples), block):
        yield from (asked[begin : begin + block] @ known.T).toarray()


def as_lines(answers: Sequence[str], examples: Sequence[Example]) -> Iterator[str]:
    """Lines of a predictions file, as answers.py writes them for a model."""
    for answer, example in zip(answers, examples, strict=True):
        row = {"id": example.id, "prompt": example.asked, "answer": answer, "gold": example.answer}
        yield json.dumps(row, ensure_ascii=False)
