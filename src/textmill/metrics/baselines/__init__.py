"""Simple models to compare a trained model with."""
