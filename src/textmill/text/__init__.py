"""Texts, tokens, answers and targets, apart from any table."""
