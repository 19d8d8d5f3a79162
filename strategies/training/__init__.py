"""Training by gradient descent: the epoch loop and all that it is set up with."""
