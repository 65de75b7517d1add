"""How hard to try: retries, timeouts, artifacts. One call into `trainyard` below each task."""
