"""From messages to ids, and from the events of an engine to text: one way for all routes."""
