"""Applications of language models, one file a task."""
