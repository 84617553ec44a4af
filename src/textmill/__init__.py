"""Textmill: from raw text to a promoted, served language model, every step reproducible."""

import os

__version__ = "0.1.0"

# Nothing Textmill starts may phone home. `setdefault` leaves a user's own choice alone.
for _variable, _value in {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    os.environ.setdefault(_variable, _value)
