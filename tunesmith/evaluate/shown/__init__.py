"""The report in words, pages and tables."""
