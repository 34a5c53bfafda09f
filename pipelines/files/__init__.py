"""Finds the prompt files behind an input and reads their rows in batches of columns."""
