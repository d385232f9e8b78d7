"""Build the Auto-annotate page."""
