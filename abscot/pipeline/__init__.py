"""Stages, and every command line that starts one; nothing below knows of them."""
