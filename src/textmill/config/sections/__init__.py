"""One file a pipeline stage: what its section of the configuration may say."""
