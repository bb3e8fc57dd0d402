"""Toy-sized stages, made once: later stages start from them."""

import pytest
from stage_toys import Toys


@pytest.fixture(scope="session")
def toys(tmp_path_factory) -> Toys:
    toys = Toys(tmp_path_factory.mktemp("toys"))
    toys.make()
    return toys
