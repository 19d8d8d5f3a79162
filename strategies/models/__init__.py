"""Pretrained backbones, their features at every depth, and image classifiers built on them."""
