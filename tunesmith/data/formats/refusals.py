"""The rows of a reading that can't be used: counted, listed by reason, told in one error."""

from __future__ import annotations

from tunesmith.data.row import BadRow
from tunesmith.errors import RowError

SHOWN = 20  # reasons printed; the count says how many more rows there are
ALIKE = 100  # so many rows at the beginning that fail for one reason: so will the others


class Refusals:
    """Collects bad rows in bounded memory: the first SHOWN reasons, how often each, and a count of the others."""

    def __init__(self) -> None:
        self.count = 0
        self._seen: dict[str, list[str | int | None]] = {}  # reason -> first place, rows, hint
        self._others = 0

    def add(self, place: str, error: BadRow | str) -> None:
        """One more bad row."""
        self.count += 1
        reason = str(error)
        known = self._seen.get(reason)
        if known is not None:
            known[1] = int(known[1] or 0) + 1
        elif len(self._seen) < SHOWN:
            self._seen[reason] = [place, 1, error.hint if isinstance(error, BadRow) else None]
        else:
            self._others += 1

    def end_if_alike(self, seen: int) -> None:
        """Raises the RowError where all of the first rows (`seen` so far, at least ALIKE) fail for one reason."""
        if seen >= ALIKE and self.count == seen and len(self._seen) == 1 and not self._others:
            raise self.error(seen, all_alike=True)

    def _fix(self) -> str:
        fixes = {reason.partition("; ")[2] for reason in self._seen}
        one = fixes.pop()
        return one if not fixes and one.startswith("save the file") else "mend or remove these rows"

    def error(self, total: int, all_alike: bool = False) -> RowError:
        """All of it, as the error that ends the reading of `total` rows."""
        lines = [
            f"  {place}{f' and {int(rows) - 1} more' if rows and int(rows) > 1 else ''}: {reason}"
            for reason, (place, rows, _) in self._seen.items()
        ]
        if self._others:
            lines.append(f"  … and {self._others} more")
        hint = next((one[2] for one in self._seen.values() if one[2]), None)
        how_many = f"the first {total} rows all" if all_alike else f"{self.count} of {total} rows"
        verb = "fail for one reason" if all_alike else "can't be used"
        return RowError(
            f"{how_many} {verb}:\n" + "\n".join(lines),
            where=str(hint) if hint else None,
            fix="mend the processor" if hint else self._fix(),
        )
