"""What stands before every route: headers, records, origins, tokens, bodies."""
