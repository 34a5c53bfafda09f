"""What you run: one file a verb, `python -m jobs VERB`."""
