"""Measurements on the user's own images, before anything is decided."""
