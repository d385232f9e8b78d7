"""Show where the project stands, and what to do next."""
