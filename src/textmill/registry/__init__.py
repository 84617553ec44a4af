"""MLflow: tracking runs and registering model versions."""
