"""Which rows may train a student, and what the data set that is left looks like."""
