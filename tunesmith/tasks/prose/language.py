"""Language adaptation: a model taught to write another language, or another script.

The headline is bits per byte of the gold answers, from report/likelihood.jsonl: perplexity per token says nothing
between two tokenizers, least of all in scripts that cost many tokens a word. Beside it chrF++ of the answers, and which
script they are in. Where the gold has two languages (a second file of data.test), each is scored by its own script.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tunesmith.tasks.answered import Answered
from tunesmith.tasks.normalise import words
from tunesmith.tasks.prose.overlap import OF_HUNDRED, cut_by, overlap_counts, overlap_meaning, overlap_metrics
from tunesmith.tasks.prose.rouge import is_english, tokens
from tunesmith.tasks.prose.script import main_script, script_letters, strays
from tunesmith.tasks.prose.text_faults import cut_short
from tunesmith.tasks.protocol import Fault, Golds, Parsed, Table
from tunesmith.tasks.sums import Metric, Share, mean, ratio
from tunesmith.tasks.text import TextTask

_SAMPLE = 1000  # training answers that tell language and script
_OURS = 0.5  # of the gold's share of letters in its script: below it the answer is in another one


class LanguageTask(TextTask):
    """Made by `make` from the training answers."""

    name = "language"
    headline = "bits_per_byte"
    headline_from = "likelihood"
    answers_headline = "chrf++"
    of_hundred = OF_HUNDRED
    lower_is_better = frozenset(("bits_per_byte", "perplexity", "lost_letters"))

    def __init__(self, golds: Sequence[str]) -> None:
        golds = golds[:: max(1, len(golds) // _SAMPLE)]
        self.english = is_english(golds)
        self.tokenize = cut_by(golds)

    @classmethod
    def make(cls, golds: Golds) -> LanguageTask:
        """From the answers of training rows."""
        return cls(list(golds))

    def counts(self, prompt: str, gold: Parsed, predicted: Parsed) -> dict[str, float]:
        """Of one row: overlap with the gold, letters by script, words."""
        right, given = str(gold.value or ""), str(predicted.value or "")
        letters = script_letters(given)
        script = main_script(script_letters(right))
        return {
            "rows": 1.0,
            "answered": float(predicted.value is not None),
            "match": float(self.correct(gold, predicted)),
            **overlap_counts(right, given, tokenize=self.tokenize, stem=self.english),
            "letters": float(sum(letters.values())) if script else 0.0,
            "letters_right": float(letters.get(script, 0)) if script else 0.0,
            "script_rows": float(script is not None),
            "script_right": float(
                script is not None and predicted.value is not None and not _strange(right, given)
            ),
            "lost_letters": float("replacement" in strays(given)),
            "words": float(len(tokens(given))),
            "gold_words": float(len(tokens(right))),
        }

    def correct(self, gold: Parsed, predicted: Parsed) -> bool:
        """The same words in the same order, case and punctuation aside."""
        return predicted.value is not None and words(gold.value or "") == words(predicted.value)

    def metrics(self) -> dict[str, Metric]:
        """Of the answers; bits per byte joins them where the likelihood was measured."""
        made = overlap_metrics()
        made = {name: made[name] for name in ("chrf++", "chrf", "rouge1", "rougeL", "bleu")}
        made["right_script"] = Share(lambda s: ratio(s["letters_right"], s["letters"]))
        made["right_script_rows"] = Share(lambda s: ratio(s["script_right"], s["script_rows"]))
        made["lost_letters"] = mean("lost_letters")
        made |= {"match": mean("match"), "answered": mean("answered")}
        made["length_ratio"] = lambda s: ratio(s["words"], s["gold_words"])
        return made

    def explain(self) -> dict[str, str]:
        """What each metric means."""
        return overlap_meaning(self.tokenize, self.english) | _MEANING

    def tables(self, sums: Mapping[str, float]) -> list[Table]:
        """None from sums: see `study`."""
        return []

    def study(self, rows: Sequence[Answered]) -> list[Table]:
        """What the answers are written in, and what that costs in tokens."""
        letters: Counter[str] = Counter()
        wanted: Counter[str] = Counter()
        for row in rows:
            letters.update(script_letters(str(row.predicted.value or "")))
            wanted.update(script_letters(str(row.gold.value or "")))
        made = []
        if letters or wanted:
            names = sorted({*letters, *wanted}, key=lambda name: (-wanted[name], -letters[name], name))
            shares = tuple(
                (name, _part(wanted[name], wanted.total()), _part(letters[name], letters.total()))
                for name in names
            )
            made.append(Table("Scripts", ("script", "share of gold letters", "share of letters"), shares))
        return [*made, *_cost(rows)]

    def faults(self, row: Answered) -> list[Fault]:
        """Written in another script than the gold; an end in mid-sentence; letters that were lost."""
        if row.predicted.value is None:
            return []
        right, given = str(row.gold.value or ""), str(row.predicted.value)
        made = []
        if _strange(right, given):
            scripts = [main_script(script_letters(text)) for text in (right, given)]
            made.append(Fault("wrong_script", "", gold=scripts[0], predicted=scripts[1]))
        if "replacement" in strays(given) and "replacement" not in strays(right):
            made.append(Fault("lost_letters", "", predicted="U+FFFD"))
        if row.line.get("stopped", True) and cut_short(right, given):
            made.append(Fault("truncated", ""))
        return made


_MEANING = {
    "right_script": "share of the answers' letters that are of the script of their gold answer (by Unicode block)",
    "right_script_rows": "share of answers that are mostly in the script of their gold answer; an empty one is not",
    "lost_letters": "share of answers with U+FFFD: bytes that make no letter; lower is better",
    "match": "share of answers with the gold's words in its order, case and punctuation aside",
    "answered": "share of answers that are not empty",
    "length_ratio": "words written for each word of the gold answers",
}


def _strange(gold: str, answer: str) -> bool:
    """Whether an answer has less than half of the gold's share of letters in the gold's script."""
    letters, wanted = script_letters(answer), script_letters(gold)
    script = main_script(wanted)
    if script is None or main_script(letters) is None:  # too few letters to say
        return False
    return letters.get(script, 0) / sum(letters.values()) < _OURS * wanted[script] / sum(wanted.values())


def _cost(rows: Sequence[Answered]) -> list[Table]:
    """Tokens a word and bytes a token of the answers, by script of the gold; of files that count tokens."""
    sums: dict[str, list[int]] = {}
    for row in rows:
        count, said = row.line.get("tokens"), str(row.line["answer"])
        if not isinstance(count, int) or not said:
            continue
        script = main_script(script_letters(said)) or "other"
        one = sums.setdefault(script, [0, 0, 0, 0])
        # the terminator is a token as well, and no part of a word
        parts = (
            1,
            count - bool(row.line.get("stopped")),
            len(tokens(said)),
            len(said.encode("utf-8", "replace")),
        )
        sums[script] = [before + part for before, part in zip(one, parts, strict=True)]
    if not sums:
        return []
    shown = tuple(
        (script, answers, _part(counted, said), _part(size, counted))
        for script, (answers, counted, said, size) in sorted(sums.items(), key=lambda item: -item[1][0])
    )
    note = "Of the answers, by the script that they are in. Many tokens a word cost memory, time and room."
    return [Table("Tokens", ("answers in", "answers", "tokens a word", "bytes a token"), shown, note)]


def _part(over: float, under: float) -> float | None:
    return over / under if under else None
