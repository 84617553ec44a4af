"""The loader under the name that `served_model.py` of versions registered before November 2026 imports."""

from __future__ import annotations

from textmill.predicting.loading import load_predictor


class Predictor:
    """Loads exported folders; new code calls `load_predictor`."""

    load = staticmethod(load_predictor)
