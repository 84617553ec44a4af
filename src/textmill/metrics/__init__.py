"""Figures that can be resampled, and the tables and pictures of a report."""
