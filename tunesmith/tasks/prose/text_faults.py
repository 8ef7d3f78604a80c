"""What is wrong with a free-text answer that word overlap doesn't see: treatments made up, an end in mid-sentence.

Everything is judged against the row's own gold and prompt, so the gold answer itself never has a fault.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.tasks.prose.medical_terms import treatments
from tunesmith.tasks.prose.rouge import sentences, tokens
from tunesmith.tasks.prose.sections import kind_of
from tunesmith.tasks.protocol import Fault

_END = ".!?;:)]}\"'”’»।॥。！？؟…*_"
_ENDS = ".!?।॥。！？؟…"
_GROUNDED = 1 / 3  # of a sentence's words: below it the sentence is another one than the gold's
_FEW = 3  # words of content below which a sentence says too little to judge
_BEGIN = 5  # letters by which two forms of a word are one: treat-ed, treat-ment
_SHORT = 4  # letters; shorter words are hardly ever content
_ANY = frozenset(
    "about above after again also although because been before being between both could does doing down during each "
    "either every from further have having here into itself just less like many might more most much must need only "
    "other over same should since some such than that their them then there these they this those through under until "
    "very well were what when where which while will with within without would your yours usually often".split()
)


def made_up(prompt: str, gold: str, answer: str, sections: Mapping[str, str]) -> list[Fault]:
    """Drugs, treatments and doses that neither gold nor prompt name; and sentences under a treatment's heading of which
    hardly a word stands in either. `sections`: the answer's."""
    known = treatments(f"{prompt}\n{gold}")
    made = [
        Fault("hallucinated", "treatment", predicted=written)
        for one, written in treatments(answer).items()
        if one not in known
    ]
    stems = _content(f"{prompt}\n{gold}")
    for name, said in sections.items():
        if kind_of(name) == "treatment":
            made += [
                Fault("hallucinated", name, predicted=one) for one in sentences(said) if _strange(one, stems)
            ]
    return made


def cut_short(gold: str, answer: str) -> bool:
    """Whether an answer ends before its end: it is the beginning of the gold and no more, or it stops within a sentence
    where the gold ends one and the answer itself has ended sentences before."""
    gold, answer = gold.rstrip(), answer.rstrip()
    if not answer or answer == gold:
        return False
    if gold.startswith(answer):
        return True
    return gold[-1] in _ENDS and answer[-1] not in _END and any(sign in answer for sign in _ENDS)


def _content(text: str) -> set[str]:
    return {word[:_BEGIN] for word in tokens(text) if len(word) >= _SHORT and word not in _ANY}


def _strange(sentence: str, known: set[str]) -> bool:
    content = _content(sentence)
    return len(content) >= _FEW and len(content & known) < _GROUNDED * len(content)
