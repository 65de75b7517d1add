"""Fine-tuning CI/CD for language models: what a release means. Knows nothing of Prefect."""

__version__ = "0.1.0"
