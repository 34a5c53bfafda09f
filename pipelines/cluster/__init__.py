"""Asks the cluster: what it has, what it could get, and what each of its nodes sees."""
