"""Publish a reward model for people without this project."""
