"""Build the Restore page."""
