"""Answers from an exported folder."""
