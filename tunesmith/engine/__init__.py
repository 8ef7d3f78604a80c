"""One training step's mathematics, behind one protocol: `protocol`; `reference` (any decoder); `memory` (the planner)."""
