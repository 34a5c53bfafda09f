"""Turns prompt tables into canonical rows, by two passes of Ray Data."""
