"""Judges a policy: the frontier, its rivals, intervals, and the verdict in words."""
