"""Charts of the reports, each with its numbers as a table."""
