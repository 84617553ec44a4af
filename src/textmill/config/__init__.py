"""Configuration: composing `conf/` and `params.yaml`, checking them once, finding plugins."""
