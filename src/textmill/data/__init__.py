"""From a named source to clean, deduplicated, tokenised splits on disk."""
