"""Domain similarity: how close a dataset is to ImageNet, measured by network activations."""
