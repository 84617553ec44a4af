"""Simple models that every trained model is compared with."""
