"""Make clean, deduplicated, tokenised splits from fetched files."""
