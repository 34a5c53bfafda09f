"""Compares the plan, the manifests and the objects: what is missing or damaged, and what repairs it."""
