"""Reads a job file: its keys, their places in the text, contradictions, and the settings of each room."""
