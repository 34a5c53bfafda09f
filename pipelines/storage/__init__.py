"""Reads and writes one folder behind a URL, on disk or in an object store; fetches checkpoints once a node."""
