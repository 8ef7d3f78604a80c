"""The model card: what a run knows of its model, for those who get the model without the run."""
