"""E2B's client as it is published, against a wrenn-server that E2B_API_URL and E2B_SANDBOX_URL name."""

import time
import uuid
from importlib.metadata import version

import pytest
from e2b import Sandbox

CLIENT = tuple(int(part) for part in version("e2b").split(".")[:2])


def since(major, minor):
    """For what older clients do not have."""
    needed = f"e2b {major}.{minor}"
    return pytest.mark.skipif(CLIENT < (major, minor), reason=f"the client is older than {needed}")


@pytest.fixture
def create():
    """Makes sandboxes, and ends them."""
    made = []

    def create(*arguments, **options):
        made.append(Sandbox.create(*arguments, **{"timeout": 300, **options}))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


@pytest.fixture
def name():
    return f"t{uuid.uuid4().hex}"


@pytest.fixture
def eventually():
    def eventually(what, seconds=60):
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it does not come"
            time.sleep(0.1)

    return eventually
