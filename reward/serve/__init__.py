"""Serve a reward model over HTTP, and ask one that is served."""
