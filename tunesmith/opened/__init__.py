"""opened: from MODEL, as it is typed, to what answers: the same for predict and serve, whatever the engine."""
