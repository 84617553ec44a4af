"""One short file a DVC stage, each a thin `main(config, runtime)` over the rooms."""
