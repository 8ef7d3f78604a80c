"""The inspection of rows before training: see docs/data-checks.md."""

from tunesmith.data.inspect.finding import CHECKS, Finding, Findings
from tunesmith.data.inspect.inspection import Inspection, inspect

__all__ = ["CHECKS", "Finding", "Findings", "Inspection", "inspect"]
