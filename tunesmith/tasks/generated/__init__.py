"""Generated records: what can be checked in them, what they copy, planted secrets."""
