"""What all routes share: `request.app.state.serve`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith import console
from tunesmith.serve.dispatch import Dispatches
from tunesmith.serve.guard.access import Access
from tunesmith.serve.limits import Admission, Limits
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.protocol import Models


@dataclass
class ServeState:
    """One server."""

    models: Models
    limits: Limits = field(default_factory=Limits)
    runs_dir: Path = Path("runs")
    """What the page Runs shows, and where the playground keeps judged answers."""
    access: Access | None = None
    """Tokens that open all routes but /health; None: no token is asked for, which is for loopback alone."""
    hosts: frozenset[str] = frozenset({"localhost"})
    """Names that a Host header may have, beside plain addresses."""
    loopback: bool = True
    """Listens on this machine's loopback alone: other addresses are foreign names, too."""
    log: Callable[[str], None] = console.note
    """Takes the access log's lines."""
    draining: bool = False
    """Set at SIGTERM: /health says 503 from then on."""
    in_progress: int = 0
    """Requests that have come and whose answers aren't finished; those that only look are not counted."""
    admission: Admission = field(init=False)
    metrics: Metrics = field(init=False)
    dispatches: Dispatches = field(default_factory=Dispatches)
    """From the engines' threads to the routes."""

    def __post_init__(self) -> None:
        self.admission = Admission(self.limits)
        self.metrics = Metrics()
