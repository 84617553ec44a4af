"""Measure a model: metrics with intervals, baselines, report, drift and promotion gate."""
