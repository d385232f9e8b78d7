"""Scripts that print one table each; run as `python -m benchmarks.NAME`."""
