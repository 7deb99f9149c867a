"""The model: the one home for transformers and peft."""
