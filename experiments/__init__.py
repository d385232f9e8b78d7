"""Evidence: scripts whose tables stand in experiments/README.md."""
