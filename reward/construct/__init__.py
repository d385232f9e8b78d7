"""Construct labelled pairs whose answer is known."""
