"""Define, load and save reward models."""
