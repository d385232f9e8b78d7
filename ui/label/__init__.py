"""Serve the labelling page."""
