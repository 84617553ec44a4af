"""Choose the model to train: short trials of several candidates under a time budget."""
