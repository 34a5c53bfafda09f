"""On the PYTHONPATH of a campaign's workers and of their children: Python runs it first, and their engine breaks."""

import os

if "STEPTHRIFT_BREAKS" in os.environ:
    from tests.breaking_engine import break_when_imported

    break_when_imported()
