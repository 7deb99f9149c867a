"""Traces from a model: the one door to vLLM."""
