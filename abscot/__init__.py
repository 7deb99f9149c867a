"""abscot: a DeepSpeed scale-out trainer for Abstract Chain-of-Thought (arXiv 2604.22709)."""

__version__ = "0.1.0"
