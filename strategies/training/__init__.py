"""Gradient training: training loop, recipes, data loading, checkpoints, data-parallel training."""
