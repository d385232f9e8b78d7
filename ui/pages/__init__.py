"""Build the admin pages of forms and tables."""
