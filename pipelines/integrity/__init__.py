"""The plan against the manifests against the objects: what is missing or damaged, and what mends it."""
