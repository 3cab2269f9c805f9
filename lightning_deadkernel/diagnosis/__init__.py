"""From what a window showed to states, findings and what may be pruned. Pure."""
