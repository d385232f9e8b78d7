"""Let requests in: addresses, sign-in, limits and turns."""
