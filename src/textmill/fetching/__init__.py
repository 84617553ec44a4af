"""Corpora and pretrained weights by name, with their digests checked."""
