"""Measurements, each with its baselines in the same run."""
