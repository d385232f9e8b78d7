"""Export datasets, and read datasets back into a database."""
