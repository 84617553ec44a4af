"""The configuration sections, one file for each stage."""
