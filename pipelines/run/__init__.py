"""Keeps the run folder: which key holds what, who drives it, and the proof that a process sees it."""
