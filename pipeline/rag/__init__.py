"""Retrieval: index, search, and records at hand in a prompt."""
