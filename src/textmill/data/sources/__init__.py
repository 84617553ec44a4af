"""The place of sources until 26 November 2026."""
