"""Train a tiny restorer from a folder of faces."""
