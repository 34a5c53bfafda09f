"""The terminal: options, errors and exit codes, progress, signals, and the way into Ray."""
