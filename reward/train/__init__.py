"""Train a reward model on labelled pairs."""
