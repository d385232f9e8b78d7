"""Compare reward models, metrics and people on labelled pairs."""
