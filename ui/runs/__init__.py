"""Serve the Runs and Models pages."""
