"""The fixtures that several test files share, from the kit."""

# Each behind those that it imports: pytest rewrites the assertions of a module on its way in.
pytest_plugins = [
    "kit.tiny_run",
    "kit.cards",
    "kit.corpus",
    "kit.hub_server",
    "kit.published_run",
    "kit.raw_data",
    "kit.rules",
    "kit.small_run",
    "kit.stores",
    "kit.trace_runs",
]
