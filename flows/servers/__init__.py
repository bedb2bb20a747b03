"""Prefect's and MLflow's servers: start them, deploy to them, schedule on them, and runs under them."""
