"""Sources of corpora, one file for each kind."""
