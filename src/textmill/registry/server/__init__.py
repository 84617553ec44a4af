"""Run MLflow for a team."""
