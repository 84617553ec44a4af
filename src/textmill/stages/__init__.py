"""One short file a DVC stage, each a thin `main` over the other subpackages."""
