"""Use of a saved classifier: prediction on new images, and export."""
