"""One folder behind a URL, on disk or in an object store; and checkpoints, fetched once a node."""
