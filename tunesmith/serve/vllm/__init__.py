"""vLLM as a child process behind the app."""
