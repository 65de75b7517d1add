"""Asking models, scoring answers, and the statistics behind a verdict."""
