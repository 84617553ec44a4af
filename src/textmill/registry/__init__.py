"""Track runs and register model versions with MLflow."""
