"""The unmodified E2B client against an agent, wherever that runs.

The environment says where: E2B_DEBUG=true means an agent on localhost:49983. The tests reach the sandbox through the
client alone, so that they hold for an agent on this machine and for one in a guest.
"""

import time
import uuid

import pytest
from e2b import Sandbox


@pytest.fixture(scope="session")
def sandbox():
    sandbox = Sandbox.create()
    yield sandbox
    sandbox.kill()


@pytest.fixture
def directory(sandbox):
    """A directory of the test's own in the sandbox."""
    path = f"/tmp/e2b-{uuid.uuid4().hex}"
    assert sandbox.files.make_dir(path)
    yield path
    sandbox.files.remove(path)


@pytest.fixture
def eventually():
    """Asks until the answer is true, for a bounded time, and returns it."""

    def ask(question, seconds=10):
        deadline = time.monotonic() + seconds
        while True:
            answer = question()
            if answer or time.monotonic() > deadline:
                assert answer, f"it did not come about within {seconds} s"
                return answer
            time.sleep(0.02)

    return ask
