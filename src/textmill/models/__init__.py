"""Network architectures, losses and routers."""
