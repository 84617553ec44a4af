"""The examples that a network sees of a split's rows."""
