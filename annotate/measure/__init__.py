"""Compute the metric values that are missing."""
