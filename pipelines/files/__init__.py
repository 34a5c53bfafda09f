"""Prompt files: which ones lie behind an input, and their rows in batches of columns."""
