"""Listening tests: a page for listeners, and the table of their answers."""
