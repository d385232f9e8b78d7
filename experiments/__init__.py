"""Produce the evidence: scripts whose tables stand in experiments/README.md."""
