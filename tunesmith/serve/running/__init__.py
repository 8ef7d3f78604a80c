"""The process: address, HTTP server, drain, signals."""
