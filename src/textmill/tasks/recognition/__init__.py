"""Recognise the task that fits data files."""
