"""Explanations of predictions: class activation maps, and the most similar known images."""
