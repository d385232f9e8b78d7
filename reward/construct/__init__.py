"""Construct pairs whose answer is known from a dataset's images, marked as made."""
