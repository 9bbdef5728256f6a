import asyncio

import pytest
from e2b import FileNotFoundException, InvalidArgumentException, SandboxException
from e2b.sandbox.filesystem.watch_handle import FilesystemEventType

CREATE, WRITE = FilesystemEventType.CREATE, FilesystemEventType.WRITE
REMOVE, RENAME, CHMOD = FilesystemEventType.REMOVE, FilesystemEventType.RENAME, FilesystemEventType.CHMOD


def collect(handle, eventually, wanted):
    """All events up to the one that is wanted."""
    seen = []

    def ask():
        seen.extend((event.name, event.type) for event in handle.get_new_events())
        return wanted in seen

    eventually(ask)
    return seen


def test_each_kind_of_change_is_told(sandbox, directory, eventually):
    handle = sandbox.files.watch_dir(directory)
    sandbox.files.write(f"{directory}/file", "one")
    sandbox.files.write(f"{directory}/file", "two")
    sandbox.commands.run(f"cd {directory}; chmod 600 file; mv file moved; rm moved")
    seen = collect(handle, eventually, ("moved", REMOVE))
    expected = [
        ("file", CREATE),
        ("file", CHMOD),
        ("file", WRITE),
        ("file", WRITE),
        ("file", CHMOD),
        ("file", RENAME),
        ("moved", CREATE),
        ("moved", REMOVE),
    ]
    # Two writes with nothing in between may be one.
    assert seen in (expected, expected[:3] + expected[4:])
    handle.stop()
    with pytest.raises(SandboxException):
        handle.get_new_events()


def test_a_tree_is_watched_to_its_leaves(sandbox, directory, eventually):
    handle = sandbox.files.watch_dir(directory, recursive=True)
    sandbox.commands.run(f"mkdir -p {directory}/a/b/c; for i in $(seq 50); do echo $i > {directory}/a/b/c/$i; done")
    sandbox.commands.run(f"mv {directory}/a {directory}/z; touch {directory}/z/b/c/last")
    seen = collect(handle, eventually, ("z/b/c/last", CREATE))
    assert {name for name, kind in seen if kind == CREATE} >= {f"a/b/c/{number}" for number in range(1, 51)}
    handle.stop()


def test_a_flat_watch_stays_flat(sandbox, directory, eventually):
    sandbox.files.make_dir(f"{directory}/below")
    handle = sandbox.files.watch_dir(directory)
    sandbox.files.write(f"{directory}/below/unseen", "x")
    sandbox.files.write(f"{directory}/seen", "x")
    assert {name for name, _ in collect(handle, eventually, ("seen", WRITE))} == {"seen"}
    handle.stop()


def test_entries_come_along(sandbox, directory, eventually):
    handle = sandbox.files.watch_dir(directory, include_entry=True, allow_network_mounts=True)
    sandbox.files.write(f"{directory}/file", "four")
    events = eventually(handle.get_new_events)
    assert events[0].entry.path == f"{directory}/file"
    assert events[0].entry.size == 4
    handle.stop()


def test_what_cannot_be_watched_is_refused(sandbox, directory):
    with pytest.raises(FileNotFoundException):
        sandbox.files.watch_dir(f"{directory}/missing")
    sandbox.files.write(f"{directory}/file", "")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.watch_dir(f"{directory}/file")


def test_the_asynchronous_client_streams_events(sandbox, connect_async, directory):
    async def run():
        other = await connect_async(sandbox)
        events, told = [], asyncio.Event()

        async def note(event):
            events.append((event.name, event.type))
            if event == ("last", CREATE) or event.name == "last":
                told.set()

        handle = await other.files.watch_dir(directory, on_event=note, recursive=True)
        await other.files.write(f"{directory}/sub/file", "x")
        await other.files.write(f"{directory}/last", "x")
        await asyncio.wait_for(told.wait(), 10)
        await handle.stop()
        return events

    events = asyncio.run(run())
    assert ("sub", CREATE) in events and ("sub/file", CREATE) in events and ("sub/file", WRITE) in events
