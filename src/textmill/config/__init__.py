"""Compose `conf/` and `params.yaml`, validate them once, and find plugins."""
