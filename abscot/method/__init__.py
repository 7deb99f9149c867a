"""The paper as code; the only room that may name a phase."""
