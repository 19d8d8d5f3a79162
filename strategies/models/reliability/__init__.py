"""Reliability of predictions: images unlike the training images, and conformal sets of classes."""
