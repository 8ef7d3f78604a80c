"""Stage export: what is made of the adapter, each thing proved and scored against it."""
