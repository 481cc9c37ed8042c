"""Analyses of a model are tested in this process; `tests/ray` runs them over Ray."""

import pytest


@pytest.fixture(autouse=True)
def in_this_process(without_ray: None) -> None:
    """Nothing here looks for a cluster."""
