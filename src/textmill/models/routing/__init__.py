"""Routers, which choose the experts of each token; one small file each."""
