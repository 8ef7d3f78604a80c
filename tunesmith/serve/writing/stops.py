"""Stop strings, found across the borders of tokens; no part of one is ever shown.

An answer ends at the first character at which a stop string is whole, and is cut where the longest of those that end
there begins. So the cut is the same wherever the borders of tokens lie.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Reads one answer."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._firsts = frozenset(stop[0] for stop in stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What of the answer so far can be shown, and whether a stop string ended it."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [(begin + len(stop), begin) for stop in self._stops if (begin := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = self._begin_of_a_stop(text)
        self._held = text[keep:]
        return text[:keep], False

    def finish(self) -> str:
        """What was held back: it did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _begin_of_a_stop(self, text: str) -> int:
        """The first character from which on the text may become a stop string."""
        longest = max(map(len, self._stops))
        for begin in range(max(0, len(text) - longest + 1), len(text)):
            if text[begin] in self._firsts and any(stop.startswith(text[begin:]) for stop in self._stops):
                return begin
        return len(text)
