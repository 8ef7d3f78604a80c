"""tunesmith: from rows and a Llama-class model to a fine-tuned model one can defend."""

__version__ = "0.1.0"
