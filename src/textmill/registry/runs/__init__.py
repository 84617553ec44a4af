"""MLflow runs and their tracking store."""
