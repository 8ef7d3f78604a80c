"""The self-test: what a run relies on, proved on the user's own base and rows before hours are spent."""
