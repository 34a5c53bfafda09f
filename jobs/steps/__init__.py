"""Holds what the verbs do, so that several can share it."""
