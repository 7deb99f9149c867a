"""Batches -> a trained model: the one door to DeepSpeed."""
