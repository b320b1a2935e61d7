"""One process that forks, for all tests of this folder."""

import pytest
from fuzz.harness import Server


@pytest.fixture(scope="session")
def server():
    with Server() as running:
        yield running
