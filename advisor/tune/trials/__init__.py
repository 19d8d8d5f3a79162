"""One trial from its claim to its score; only the search and the driver come in."""
