"""Where and when things run: what `prefect.yaml` points at, and the scripts behind `make up`."""
