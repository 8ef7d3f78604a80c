"""Ready processors: from one raw row to examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

PROCESSORS: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
