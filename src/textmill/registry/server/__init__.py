"""MLflow for a team."""
