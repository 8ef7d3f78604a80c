"""What lies in a run only while its artifacts are made, and goes when the stage ends."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from tunesmith.export.folder import new_folder
from tunesmith.export.job import Job
from tunesmith.export.merged import write_merge
from tunesmith.export.yardstick import Yardstick
from tunesmith.model.merge import Source


class Passing:
    """`stack`: closed when the stage ends."""

    def __init__(self, job: Job, yard: Yardstick, stack: ExitStack) -> None:
        self.job, self.yard, self._stack = job, yard, stack

    @cached_property
    def folder(self) -> Path:
        """For files under passing names."""
        return self._stack.enter_context(new_folder(self.job.run))

    def merged(self, source: Source) -> Path:
        """The adapter merged into these weights: the kept folder, or one made for this."""
        candidates = self.yard.candidates
        if source == self.yard.source:
            return self.yard.folder
        if source not in candidates:
            folder = self._stack.enter_context(new_folder(self.job.run))
            write_merge(self.job, source, folder)
            candidates[source] = folder
        return candidates[source]
