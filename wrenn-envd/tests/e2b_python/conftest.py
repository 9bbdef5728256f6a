"""The unmodified E2B client against an agent, wherever that runs.

The environment says where: E2B_DEBUG=true means an agent on localhost:49983, and WRENN_ACCESS_TOKEN is the token that it
asks for, if it does. The tests reach the sandbox through the client alone, so that they hold for an agent on this machine
and for one in a guest.
"""

import os
import time
import uuid

import pytest
from e2b import AsyncSandbox, Sandbox
from e2b.connection_config import ConnectionConfig
from packaging.version import Version

TOKEN = os.environ.get("WRENN_ACCESS_TOKEN")


def attach(kind):
    """What `kind.connect` makes of a control plane's answer; its debug mode asks none, and so knows no token."""
    headers = {"E2b-Sandbox-Id": "guest", "E2b-Sandbox-Port": "49983", "X-Access-Token": TOKEN}
    return kind(
        sandbox_id="guest",
        sandbox_domain=None,
        envd_version=Version("99.99.99"),
        envd_access_token=TOKEN,
        traffic_access_token=None,
        connection_config=ConnectionConfig(extra_sandbox_headers=headers),
    )


@pytest.fixture(scope="session")
def sandbox():
    sandbox = attach(Sandbox) if TOKEN else Sandbox.create()
    yield sandbox
    sandbox.kill()


@pytest.fixture
def connect_async():
    """Makes an asynchronous client of the same sandbox."""

    async def connect(sandbox):
        return attach(AsyncSandbox) if TOKEN else await AsyncSandbox.connect(sandbox.sandbox_id)

    return connect


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
