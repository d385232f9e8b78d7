"""Publish a restorer as a folder that others load without this project."""
