"""Versions of registered models."""
