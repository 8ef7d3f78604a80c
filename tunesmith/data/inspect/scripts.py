"""Which scripts the answers of a data set are written in, and answers in another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tunesmith.tasks.prose.script import main_script

USUAL = 0.15  # a script that fewer answers are written in is not one of the data set's own
OWN = 0.05  # likewise, where an answer only follows its prompt, as in a set of several languages


@dataclass(frozen=True)
class ScriptNorms:
    """The scripts that answers are written in."""

    usual: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    """Scripts that are right where the prompt is written in them too."""

    @classmethod
    def learn(cls, mains: Iterable[tuple[str | None, str | None]]) -> ScriptNorms:
        """From the main scripts of each training row's prompt and answer."""
        pairs = [(asked, answered) for asked, answered in mains if answered]
        counts = Counter(answered for _, answered in pairs)
        follow = sum(asked == answered for asked, answered in pairs)
        usual, own = (
            frozenset(name for name, times in counts.items() if times >= share * len(pairs))
            for share in (USUAL, OWN)
        )
        return cls(usual, own if 2 * follow >= len(pairs) else frozenset())

    def finding(
        self, letters: Mapping[str, int], asked: Mapping[str, int], found: Mapping[str, int]
    ) -> str | None:
        """What to look at: an answer in another script than the others, or with characters that were lost."""
        if found.get("replacement"):
            return f"{found['replacement']} replacement characters (U+FFFD): the text was decoded wrongly"
        main = main_script(letters)
        if main is None or not self.usual or main in self.usual:
            return None
        if main in self.own and main == main_script(asked):
            return None
        share = letters[main] / sum(letters.values())
        return f"{share:.0%} of the letters are {main}; the others write {' or '.join(sorted(self.usual))}"
