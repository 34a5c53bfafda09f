"""Prompt tables become canonical rows, by two passes of Ray Data."""
