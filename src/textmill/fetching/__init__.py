"""Fetch corpora and pretrained weights by name, and check their digests."""
