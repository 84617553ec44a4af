"""Textmill measured against its rivals, each pair in one run."""
