"""A run's files -> tables, pictures, model card."""
