"""Load an exported model and predict with it."""
