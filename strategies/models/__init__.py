"""Pretrained networks, their features at every depth, and the classifiers made of them."""
