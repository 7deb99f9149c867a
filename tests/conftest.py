"""CUDA or not, and the fixtures that several test files share, from the kit."""

import pytest

from kit import cuda

# Each behind those that it imports: pytest rewrites the assertions of a module on its way in.
KIT = (
    "kit.tiny_run",
    "kit.cards",
    "kit.corpus",
    "kit.hub_server",
    "kit.machines",
    "kit.published_run",
    "kit.raw_data",
    "kit.rules",
    "kit.small_run",
    "kit.stores",
    "kit.trace_runs",
)


def pytest_configure(config):
    if not cuda.shown_by(config.option.markexpr):
        cuda.hide()  # before a module of the kit imports DeepSpeed, which asks for CUDA
    for name in KIT:
        config.pluginmanager.import_plugin(name)


def pytest_collection_modifyitems(config, items):
    shown = cuda.shown_by(config.option.markexpr)
    for item in items:
        if reason := cuda.left_out(item, shown):
            item.add_marker(pytest.mark.skip(reason=reason))
