"""Makes what a person looks at after a run: totals, the page, the contact sheet."""
