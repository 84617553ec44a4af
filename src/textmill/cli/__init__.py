"""The `textmill` command."""
