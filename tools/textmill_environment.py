"""Prepare each Python process of the environment, also `dvc` and `mlflow`; `make install` copies it to site-packages.

It has to be cheap, and it imports nothing of Textmill: a registered model brings its own.
"""

import os

# Nothing may phone home. `setdefault` leaves a user's own choice alone.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

# A container often runs as a number without a name: DVC and MLflow ask for the name and the home on their first line.
if not {"LOGNAME", "USER", "LNAME", "USERNAME"} & os.environ.keys():
    try:
        import pwd

        pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}" if hasattr(os, "getuid") else "unknown"
if os.path.expanduser("~") == "~":  # noqa: PTH111 - pathlib raises
    os.environ["HOME"] = os.sep  # as container engines do
