"""The origin of a version: show, verify, reproduce, adopt."""
