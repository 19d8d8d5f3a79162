"""AutoML run: search hyperparameters from the advice on, within a time budget."""
