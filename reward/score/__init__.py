"""Compute rewards of files and of a database's candidates."""
