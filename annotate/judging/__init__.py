"""Choose pairs, show them to people and record their judgments."""
