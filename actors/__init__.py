"""What one process does: frozen models, the step table, the lane loop. Plain Python and torch; never imports ray."""
