"""What a network is shown of a split's rows."""
