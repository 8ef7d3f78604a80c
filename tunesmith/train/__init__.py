"""The stage train: rows and a base become an adapter; killed anywhere, it goes on as if nothing had happened."""
