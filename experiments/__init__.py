"""Runs at full size that a person starts: too large for tests, too long for CI. No package imports this one."""
