"""Decisions before a training: which model is worth it."""
