"""The job file: its keys, where each stands, what contradicts, and what each room takes of it."""
