"""Restore photos, folders and a database's sources."""
