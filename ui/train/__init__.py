"""Serve the Train page."""
