"""The tree of errors that a user can mend. A bug is never one of them: it keeps its traceback.

TunesmithError                 exit 2: what is wrong, where, what to type next
├── RecipeError                recipe.yaml or --set (all problems at once)
├── RowError                   rows that can't be read or don't fit (file and line)
├── ModelError                 base model or adapter
├── SetupError                 a package, tool or device that is missing
├── AccessError                no permission, gated or unknown repository
├── RunLocked, RunChanged      somebody else is at work here; the recipe or the rows changed
├── OutOfRoom                  memory or disk; 75 once a checkpoint exists
├── ProofFailed, RowCheckFailed, NotFinite        exit 3
└── Stopped                    exit 75: stopped by a signal, resumable
"""

from __future__ import annotations


class TunesmithError(Exception):
    """Something the user can mend. `where` is a file, line, key or row; `fix` is what to do or type next."""

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, where, fix)  # all three as args: errors stay picklable
        self.what, self.where, self.fix = what, where, fix
        self.result: dict[str, object] = {}  # what --json gives beside the error

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.fix, self.exit_code))

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


def _rebuild(
    kind: type[TunesmithError], what: str, where: str | None, fix: str | None, code: int
) -> TunesmithError:
    error = kind(what, where=where, fix=fix)
    error.exit_code = code
    return error


class RecipeError(TunesmithError):
    """The recipe, or a `--set`, says something that can't be meant."""


class RowError(TunesmithError):
    """Rows that can't be read, or lack what the recipe needs of them."""


class ModelError(TunesmithError):
    """The base model or the adapter is not what it has to be."""


class SetupError(TunesmithError):
    """A package, tool or device is missing, or this version can't do it yet."""


class AccessError(TunesmithError):
    """A file, repository or account that may not be read or written."""


class RunLocked(TunesmithError):
    """Another process works in this run folder."""


class RunChanged(TunesmithError):
    """The recipe or the rows differ from those that the run folder was started with."""


class OutOfRoom(TunesmithError):
    """No memory or no disk. `resumable` once a checkpoint is on disk: then the exit code is 75."""

    def __init__(
        self, what: str, *, where: str | None = None, fix: str | None = None, resumable: bool = False
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        if resumable:
            self.exit_code = 75


class ProofFailed(TunesmithError):
    """A proof's figure is beyond its limit."""

    exit_code = 3


class RowCheckFailed(TunesmithError):
    """The rows can be read, but a check of their content says that they must not be trained or scored on."""

    exit_code = 3


class NotFinite(TunesmithError):
    """The loss or the gradient is NaN or infinite."""

    exit_code = 3


class Stopped(TunesmithError):
    """Stopped by a signal after a checkpoint: the same command goes on."""

    exit_code = 75
