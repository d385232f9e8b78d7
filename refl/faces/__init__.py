"""Find, align, degrade and paste back faces."""
