"""Shards and traces -> the plan and its batches."""
