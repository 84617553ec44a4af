"""Lightning training: batches, module, checkpoints, exact resume."""
