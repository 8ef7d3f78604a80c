"""One training step's mathematics behind one protocol: `reference` (any decoder), `memory` (the planner)."""
