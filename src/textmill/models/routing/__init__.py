"""Routers: which experts a token passes, one small file each."""
