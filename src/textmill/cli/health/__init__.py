"""The checks of `textmill doctor`, by subject."""
