"""Questions answered in free text, in sections or without: what patients ask, what a guideline says.

Overlap with the gold answer (ROUGE, BLEU, chrF) is taken without standing phrases (standing.py), and beside it
with them (`_whole`, what others print). Sections are counted over all rows whose gold has them: leaving one out never
makes a score better. Overlap doesn't see what is made up, so drugs, treatments and doses are looked for by themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.tasks.answered import Answered
from tunesmith.tasks.normalise import words
from tunesmith.tasks.prose.medical_terms import NAME, is_term, treatments
from tunesmith.tasks.prose.overlap import OF_HUNDRED, cut_by, overlap_counts, overlap_meaning, overlap_metrics
from tunesmith.tasks.prose.rouge import is_english, tokens
from tunesmith.tasks.prose.sections import Headings, kind_of
from tunesmith.tasks.prose.standing import HALF, Gram, Read, Standing, grams_of
from tunesmith.tasks.prose.text_faults import cut_short, made_up
from tunesmith.tasks.protocol import Detail, Fault, Golds, Parsed, Table
from tunesmith.tasks.sums import Metric, Share, Sums, mean, ratio

_WHOLE = "whole_"
_SAMPLE = 1000  # training answers that habits are learned from
_PRESENCE = ("diagnosis", "treatment")


class Sides(NamedTuple):
    """Gold and answer as they are compared."""

    gold: Read
    given: Read
    gold_sections: dict[str, str]
    """Name → what stands under it; only sections that say something."""
    given_sections: dict[str, str]


class QuestionTask:
    """Made by `make` from the training answers."""

    name = "qa"
    headline = "chrf"
    of_hundred = OF_HUNDRED | {"bleu_whole", "chrf_whole"}
    lower_is_better = frozenset(("treatments_made_up", "treatment_section_made_up"))

    def __init__(self, golds: Sequence[str]) -> None:
        golds = golds[:: max(1, len(golds) // _SAMPLE)]
        self.headings = Headings.learn(golds)
        self.standing = Standing.learn(golds)
        self.always = Standing.learn(golds, HALF).grams
        self.repeated = frozenset[Gram]()
        """What the scored system itself says again and again."""
        self.english = is_english(golds)
        self.tokenize = cut_by(golds)

    @classmethod
    def make(cls, golds: Golds) -> QuestionTask:
        """From the answers of training rows."""
        return cls(list(golds))

    def for_answers(self, answers: Sequence[str]) -> QuestionTask:
        """Also passes over what most of these answers repeat and a row's gold doesn't say."""
        made = copy(self)
        made.repeated = Standing.learn(answers, HALF).grams
        return made

    def parse(self, answer: str) -> Parsed:
        """The text without surrounding space; an empty one can't be scored."""
        text = answer.strip()
        return Parsed(text) if text else Parsed(None, ("unparsable: the answer is empty",))

    def counts(self, prompt: str, gold: Parsed, predicted: Parsed) -> dict[str, float]:
        """Of one row: overlap, sections, terms."""
        sides = self._sides(gold, predicted)
        given = predicted.value is not None
        how = partial(overlap_counts, tokenize=self.tokenize, stem=self.english)
        whole = own = how(sides.gold.own(), sides.given.own())
        if sides.gold.standing or sides.given.standing:
            whole = own | how(sides.gold.text, sides.given.text, kinds=("rougeL",))
        return {
            "rows": 1.0,
            "answered": float(given),
            "match": float(self.correct(gold, predicted)),
            "words": float(sides.given.words),
            "gold_words": float(sides.gold.words),
            "standing": float(sides.given.standing),
            "gold_standing": float(sides.gold.standing),
            **own,
            **{f"{_WHOLE}{name}": count for name, count in whole.items()},
            **self._section_counts(sides),
            **(self._term_counts(prompt, sides) if self.english else dict.fromkeys(_TERM_COUNTS, 0.0)),
        }

    def correct(self, gold: Parsed, predicted: Parsed) -> bool:
        """The same words in the same order, case and punctuation aside."""
        return predicted.value is not None and words(gold.value or "") == words(predicted.value)

    def metrics(self) -> dict[str, Metric]:
        """Overlap, then sections, then terms; `metric:section` for each heading of the training answers."""
        made: dict[str, Metric] = dict(overlap_metrics())
        whole = overlap_metrics(_WHOLE)
        made |= {f"{name}_whole": whole[name] for name in ("chrf", "rougeL", "bleu")}
        for kind in _PRESENCE:
            made[f"{kind}_presence"] = _share(f"both:{kind}", f"gold:{kind}")
        made["treatment_section_made_up"] = Share(
            lambda s: ratio(s["given:treatment"] - s["both:treatment"], s["rows"] - s["gold:treatment"])
        )
        made["structure_f1"] = Share(
            lambda s: ratio(2 * s["sections_both"], s["sections_gold"] + s["sections_given"])
        )
        made["structure_order"] = _share("order_kept", "order_pairs")
        made["structure_kept"] = _share("structure_kept", "structure_rows")
        made["terminology"] = _share("terms", "term_words")
        made["gold_terminology"] = _share("gold_terms", "gold_term_words")
        made["terms_found"] = _share("terms_found", "terms_wanted")
        made["treatments_made_up"] = _share("treatments_made_up", "treatments")
        made["boilerplate"] = _share("standing", "words")
        made["gold_boilerplate"] = _share("gold_standing", "gold_words")
        made |= {"match": mean("match"), "answered": mean("answered")}
        made["length_ratio"] = lambda s: ratio(s["words"], s["gold_words"])
        for name in self.headings.known:
            made[f"section_f1:{name}"] = Share(partial(_section_f1, name))
        return made

    def explain(self) -> dict[str, str]:
        """What each metric means."""
        said = overlap_meaning(self.tokenize, self.english)
        made = {name: f"{meaning}; without standing phrases" for name, meaning in said.items()}
        made["chrf"] += "; headline"
        made |= {
            f"{name}_whole": f"{said[name]}; standing phrases and all" for name in ("chrf", "rougeL", "bleu")
        }
        return made | _MEANING

    def tables(self, sums: Mapping[str, float]) -> list[Table]:
        """Sections by name; standing phrases of the training answers."""
        made = []
        if self.headings.known:
            rows = []
            for name in self.headings.known:
                gold, given, both = (
                    int(sums[f"{side}_section:{name}"]) for side in ("gold", "given", "both")
                )
                rows.append((name, gold, given, both, gold - both, given - both))
            made.append(
                Table(
                    "Sections",
                    ("section", "in gold answers", "in answers", "in both", "dropped", "made up"),
                    tuple(rows),
                    "A section counts where something but a standing phrase stands under its heading.",
                )
            )
        if self.standing.shown:
            note = "Six words and more that a fifth of the training answers hold; overlap is scored without them."
            made.append(Table("Standing phrases", ("phrase", "share of training answers"), self.standing.shown, note,
                              quotes=True))  # fmt: skip
        return made

    def details(self, gold: Parsed, predicted: Parsed) -> list[Detail]:
        """Section by section; one line where the gold has none."""
        sides = self._sides(gold, predicted)
        if not sides.gold_sections:
            return [_detail("answer", gold.value, predicted.value)]
        names = dict.fromkeys([*sides.gold_sections, *sides.given_sections])
        return [
            _detail(name, sides.gold_sections.get(name), sides.given_sections.get(name)) for name in names
        ]

    def faults(self, row: Answered) -> list[Fault]:
        """Sections dropped and made up, treatments made up, an answer that ends in mid-sentence."""
        if row.predicted.value is None:
            return []
        sides = self._sides(row.gold, row.predicted)
        made = [
            Fault("dropped_section", name, gold=said)
            for name, said in sides.gold_sections.items()
            if name not in sides.given_sections
        ]
        made += [
            Fault("hallucinated", name, predicted=said)
            for name, said in sides.given_sections.items()
            if name not in sides.gold_sections and (sides.gold_sections or self.headings.known)
        ]
        if self.english:
            made += made_up(row.example.asked, sides.gold.text, sides.given.text, sides.given_sections)
        if row.line.get("stopped", True) and cut_short(sides.gold.text, sides.given.text):
            made.append(Fault("truncated", ""))
        return made

    def unscored(self, gold: Parsed) -> list[str]:
        """Nothing: the whole text counts."""
        return []

    def common_answer(self, golds: Sequence[Parsed]) -> str:
        """The answer given most often."""
        return Counter(str(gold.value) for gold in golds).most_common(1)[0][0]

    def _sides(self, gold: Parsed, predicted: Parsed) -> Sides:
        right, given = str(gold.value or ""), str(predicted.value or "")
        phrases, always, said = self.standing.grams, self.always, grams_of(right)
        read = Read(right, phrases)
        if read.standing == read.words:  # one of a few set answers: nothing else is there to be scored
            read, phrases, always = Read(right), phrases - said, always - said
        repeated = self.repeated - said
        sections = [self._said(Read(right, always)), self._said(Read(given, always | repeated))]
        return Sides(read, Read(given, phrases | repeated), *sections)

    def _said(self, read: Read) -> dict[str, str]:
        made: dict[str, str] = {}
        for one in self.headings.sections(read.text):
            if read.says(one.begin, one.end):
                said = read.text[one.begin : one.end].strip()
                made[one.name] = f"{made[one.name]}\n{said}" if one.name in made else said
        return made

    def _section_counts(self, sides: Sides) -> dict[str, float]:
        gold, given = list(sides.gold_sections), list(sides.given_sections)
        both = [name for name in gold if name in sides.given_sections]
        kinds = {
            side: {kind_of(name) for name in names} for side, names in (("gold", gold), ("given", given))
        }
        made = {
            "sections_gold": float(len(gold)),
            "sections_given": float(len(given)),
            "sections_both": float(len(both)),
            "order_pairs": float(len(gold) * (len(gold) - 1) // 2),
            "order_kept": float(
                sum(given.index(one) < given.index(other) for one, other in combinations(both, 2))
            ),
            "structure_rows": float(bool(gold)),
            "structure_kept": float(bool(gold) and gold == given),
        }
        for kind in _PRESENCE:
            right, said = (kind in kinds[side] for side in ("gold", "given"))
            made |= {
                f"gold:{kind}": float(right),
                f"given:{kind}": float(said),
                f"both:{kind}": float(right and said),
            }
        for name in self.headings.known:
            right, said = name in sides.gold_sections, name in sides.given_sections
            made |= {
                f"gold_section:{name}": float(right),
                f"given_section:{name}": float(said),
                f"both_section:{name}": float(right and said),
            }
        return made

    def _term_counts(self, prompt: str, sides: Sides) -> dict[str, float]:
        gold, given = tokens(sides.gold.own()), tokens(sides.given.own())
        right, said = ([word for word in side if is_term(word)] for side in (gold, given))
        known = treatments(f"{prompt}\n{sides.gold.text}").keys()
        invented = (
            treatments(sides.given.text).keys() - known
        )  # in a standing phrase too: it may hurt there as well
        wanted, named = set(right), treatments(sides.given.own()).keys() | invented
        found = (
            len(said), len(given), len(right), len(gold), len(wanted & set(said)), len(wanted),
            len(invented), len(named),
        )  # fmt: skip
        return dict(zip(_TERM_COUNTS, map(float, found), strict=True))


_TERM_COUNTS = ("terms", "term_words", "gold_terms", "gold_term_words", "terms_found", "terms_wanted",
                "treatments_made_up", "treatments")  # fmt: skip
_MEANING = {
    "diagnosis_presence": "of the rows whose gold has a diagnosis section, the share whose answer has one that says "
    "something; the bare word counts nowhere",
    "treatment_presence": "the same of the treatment section",
    "treatment_section_made_up": "of the rows whose gold has no treatment section, the share whose answer has one; "
    "lower is better",
    "structure_f1": "F1 of the sets of sections, over all rows",
    "structure_order": "of all pairs of sections in the gold answers, the share that the answer has in that order",
    "structure_kept": "share of answers with the gold's sections, all of them, no other, in its order",
    "terminology": f"medical words, of all words of the answers ({NAME}: a list of our own, English alone)",
    "gold_terminology": "the same in the gold answers",
    "terms_found": f"of the different medical words of each gold answer, the share that its answer has ({NAME})",
    "treatments_made_up": "of the drugs, treatments and doses that answers name, the share that stands neither in the "
    f"gold nor in the prompt ({NAME}, English alone); lower is better",
    "boilerplate": "share of words in phrases that a fifth of the training answers, or half of this system's, hold",
    "gold_boilerplate": "the same in the gold answers, by the training answers",
    "match": "share of answers with the gold's words in its order, case and punctuation aside",
    "answered": "share of answers that are not empty",
    "length_ratio": "words written for each word of the gold answers",
}


def _detail(field: str, gold: str | None, given: str | None) -> Detail:
    right, said = set(words(gold or "")), set(words(given or ""))
    if gold is None:
        verdict = "hallucinated"
    elif given is None:
        verdict = "missed"
    elif right == said:
        verdict = "match"
    else:
        verdict = "partly" if right & said else "wrong"
    return Detail(field, gold, given, verdict)


def _share(over: str, under: str) -> Metric:
    return Share(lambda sums: ratio(sums[over], sums[under]))


def _section_f1(name: str, sums: Sums) -> NDArray[np.float64]:
    both, gold, given = (sums[f"{side}_section:{name}"] for side in ("both", "gold", "given"))
    return ratio(2 * both, gold + given)
