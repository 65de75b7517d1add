"""Training is a program of its own behind a folder: see `job` for the contract."""
