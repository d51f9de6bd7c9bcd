"""Tests that install a provider's own package, hundreds of megabytes: only when asked for with `-m providers`."""

import pytest


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("providers") and "providers" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="installs the provider's package: pytest -m providers tests/cloud"))
