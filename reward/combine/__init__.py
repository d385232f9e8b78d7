"""Make a reward set of several rewards."""
