"""What every strategy stands on: tasks, backbones, features, probes, training, classifiers."""
