"""Import photos and restored images."""
