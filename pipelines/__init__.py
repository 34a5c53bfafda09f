"""How rows flow: prompts, the plan, dispatch, and the run folder. The only Ray Data and storage code."""
