"""The rooms from outside: two pipelines in a page each. Run one as `python -m examples.batch`."""
