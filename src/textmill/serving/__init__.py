"""Predictions from an exported model, without PyTorch."""
