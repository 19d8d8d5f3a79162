"""Measurements on the user's own images: the input of the decision."""
