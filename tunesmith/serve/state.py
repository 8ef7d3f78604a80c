"""What all routes share: `request.app.state.serve`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.serve.limits import Admission, Limits
from tunesmith.serve.protocol import Models


@dataclass
class ServeState:
    """One server."""

    models: Models
    limits: Limits = field(default_factory=Limits)
    runs_dir: Path = Path("runs")
    """What the page Runs shows, and where the playground keeps judged answers."""
    draining: bool = False
    """Set at SIGTERM: /health says 503 from then on."""
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.limits)
