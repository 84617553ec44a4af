"""Predict what a training takes before it runs: operations, memory, time, energy and cost."""
