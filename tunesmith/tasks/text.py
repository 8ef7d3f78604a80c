"""Free text: exact match and word F1, so that any row of questions and answers has a headline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tunesmith.tasks.normalise import words
from tunesmith.tasks.protocol import Detail, Parsed, Table
from tunesmith.tasks.sums import Metric, mean, ratio


class TextTask:
    """The answer is a text. Words as in tasks/normalise.py, so scripts other than Latin count too."""

    name = "text"
    headline = "word_f1"

    def parse(self, answer: str) -> Parsed:
        """The text without surrounding space; an empty one can't be scored."""
        text = answer.strip()
        return Parsed(text) if text else Parsed(None, ("unparsable: the answer is empty",))

    def counts(self, prompt: str, gold: Parsed, predicted: Parsed) -> dict[str, float]:
        """Per row: exact, F1 of the bag of words (SQuAD's), lengths."""
        right, given = words(gold.value or ""), words(predicted.value or "")
        shared = sum((Counter(right) & Counter(given)).values())
        both = len(right) + len(given)
        return {
            "rows": 1.0,
            "answered": float(predicted.value is not None),
            "exact": float(self.correct(gold, predicted)),
            "match": float(predicted.value is not None and right == given),
            "word_f1": 2 * shared / both if both else float(self.correct(gold, predicted)),
            "words": float(len(given)),
            "gold_words": float(len(right)),
        }

    def correct(self, gold: Parsed, predicted: Parsed) -> bool:
        """The same text, letter by letter."""
        return predicted.value is not None and bool(gold.value == predicted.value)

    def metrics(self) -> dict[str, Metric]:
        """Means over rows; `length_ratio` over all words."""
        means = {"word_f1": "word_f1", "match": "match", "exact_match": "exact", "answered": "answered"}
        made: dict[str, Metric] = {name: mean(count) for name, count in means.items()}
        made["length_ratio"] = lambda sums: ratio(sums["words"], sums["gold_words"])
        return made

    def explain(self) -> dict[str, str]:
        """What each metric means."""
        return {
            "word_f1": "F1 of the answer's words against the gold's, mean over rows; headline",
            "match": "share of answers with the same words in the same order, case and punctuation aside",
            "exact_match": "share of answers that equal the gold letter by letter",
            "answered": "share of answers that are not empty",
            "length_ratio": "words written for each word of the gold answers",
        }

    def tables(self, sums: Mapping[str, float]) -> list[Table]:
        """None: a text has no fields."""
        return []

    def details(self, gold: Parsed, predicted: Parsed) -> list[Detail]:
        """One line: the two texts."""
        right, given = set(words(gold.value or "")), set(words(predicted.value or ""))
        if predicted.value is None:
            verdict = "missed"
        elif right == given:
            verdict = "match"
        else:
            verdict = "partly" if right & given else "wrong"
        return [Detail("answer", gold.value, predicted.value, verdict)]

    def unscored(self, gold: Parsed) -> list[str]:
        """Nothing: the whole text counts."""
        return []

    def common_answer(self, golds: Sequence[Parsed]) -> str:
        """The answer given most often."""
        return Counter(str(gold.value) for gold in golds).most_common(1)[0][0]
