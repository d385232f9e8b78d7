"""Print one table per script: `python -m benchmarks.NAME`."""
