"""A policy is judged: the frontier, its rivals, intervals, and the verdict in words."""
