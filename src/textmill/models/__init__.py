"""Network architectures, and where pretrained weights come from."""
