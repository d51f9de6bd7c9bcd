"""Is this machine fit for a run, and will its results last? Checks with remedies. Standard library only."""
