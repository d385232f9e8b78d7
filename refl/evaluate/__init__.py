"""Compare restorers on the same faces and seeds."""
