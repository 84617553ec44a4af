"""Texts, tokens, answers and targets, independent of any table."""
