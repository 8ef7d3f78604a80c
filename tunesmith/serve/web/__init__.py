"""The pages: Playground and Runs."""
