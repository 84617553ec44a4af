"""Figures with intervals, baselines, plots and the report."""
