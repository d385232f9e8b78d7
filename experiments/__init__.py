"""Evidence: scripts whose tables stand in benchmarks/README.md."""
