"""What one does with a saved classifier."""
