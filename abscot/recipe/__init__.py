"""What is asked for, and where it lies on disk."""
