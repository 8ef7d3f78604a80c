"""Answers that are given while they are written, by our own model code."""
