"""Where corpora come from: one file a kind of source."""
