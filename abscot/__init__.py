"""abscot: a DeepSpeed scale-out trainer for Abstract Chain-of-Thought (arXiv 2604.22709)."""

import os

__version__ = "0.1.0"

# Read when pyarrow is imported. Its own allocator takes a gigabyte in advance, so that a limit on
# memory (data/tables.py) would not hold.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
