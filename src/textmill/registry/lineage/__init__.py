"""What a version was made of, and whether it still holds."""
