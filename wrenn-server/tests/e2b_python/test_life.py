from datetime import datetime, timedelta, timezone

import pytest
from conftest import since
from e2b import Sandbox, SandboxQuery, SandboxState
from e2b.exceptions import AuthenticationException, NotFoundException, SandboxException


def left(sandbox):
    return (sandbox.get_info().end_at - datetime.now(timezone.utc)).total_seconds()


def test_a_sandbox_is_what_was_asked_for(create):
    sandbox = create(metadata={"user": "ada & co", "e mail": "a+b@c=d"}, envs={"WHO": "ada"}, timeout=200)
    assert sandbox.commands.run("echo $WHO; id -un; pwd").stdout == "ada\nuser\n/home/user\n"
    info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id and info.template_id == "base" and info.state == SandboxState.RUNNING
    assert info.metadata == {"user": "ada & co", "e mail": "a+b@c=d"}
    assert info.cpu_count == 1 and info.memory_mb == 512 and 190 < left(sandbox) <= 200
    assert abs((datetime.now(timezone.utc) - info.started_at).total_seconds()) < 60
    assert sandbox.is_running()
    assert sandbox.kill() and not sandbox.kill()
    assert not sandbox.is_running()
    with pytest.raises(NotFoundException):
        sandbox.get_info()
    with pytest.raises(SandboxException):
        sandbox.commands.run("true")


def test_a_pause_keeps_files_processes_and_names(create):
    sandbox = create(metadata={"a": "b"}, envs={"WHO": "ada"})
    sandbox.files.write("/home/user/kept", "kept")
    sandbox.commands.run("sleep 1000", background=True)
    assert sandbox.pause()
    assert sandbox.get_info().state == SandboxState.PAUSED
    assert not sandbox.pause(), "it is paused already"
    same = Sandbox.connect(sandbox.sandbox_id, timeout=100)
    assert same.files.read("/home/user/kept") == "kept"
    assert [process.args[-1] for process in same.commands.list()] == ["sleep 1000"]
    assert same.commands.run("echo $WHO").stdout == "ada\n"
    # What was made before the pause goes on, too: its token is the same.
    assert sandbox.commands.run("echo here").stdout == "here\n"
    info = same.get_info()
    assert info.metadata == {"a": "b"} and info.state == SandboxState.RUNNING
    # Files of the second pause, which a peer of ours loses.
    same.files.write("/home/user/second", "second")
    assert same.pause()
    again = Sandbox.connect(sandbox.sandbox_id)
    assert (again.files.read("/home/user/kept"), again.files.read("/home/user/second")) == ("kept", "second")


def test_a_connect_puts_the_end_off_and_never_nearer(create):
    sandbox = create(timeout=100)
    Sandbox.connect(sandbox.sandbox_id, timeout=10)
    assert left(sandbox) > 80
    Sandbox.connect(sandbox.sandbox_id, timeout=200)
    assert left(sandbox) > 180
    sandbox.set_timeout(50)
    assert left(sandbox) <= 50


def test_the_end_comes(create, eventually):
    sandbox = create(timeout=2)
    eventually(lambda: not sandbox.is_running())
    eventually(lambda: not sandbox.kill())
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id)


def test_the_end_may_be_a_pause(create, eventually):
    sandbox = create(timeout=2, lifecycle={"on_timeout": "pause"})
    sandbox.files.write("/tmp/a", "a")
    eventually(lambda: sandbox.get_info().state == SandboxState.PAUSED)
    with pytest.raises(SandboxException, match="not found"):
        sandbox.commands.run("true")
    same = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert same.files.read("/tmp/a") == "a"
    assert left(same) > 40


def test_a_request_wakes_what_was_asked_to_be_woken(create):
    sandbox = create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.files.write("/tmp/a", "a")
    for _ in range(2):
        assert sandbox.pause()
        assert sandbox.files.read("/tmp/a") == "a"
        assert sandbox.get_info().state == SandboxState.RUNNING
    assert sandbox.pause()
    assert sandbox.commands.run("cat /tmp/a").stdout == "a"


def test_what_is_not_there_is_not_found():
    for unknown in ["sb0000000000000000", "none"]:
        with pytest.raises(NotFoundException):
            Sandbox.connect(unknown)
        assert not Sandbox.kill(unknown)
    with pytest.raises(SandboxException, match="no-such-template"):
        Sandbox.create("no-such-template")


def test_a_wrong_key_opens_nothing(create):
    sandbox = create()
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)
    with pytest.raises(AuthenticationException):
        Sandbox.connect(sandbox.sandbox_id, api_key="e2b_" + "0" * 40)
    assert sandbox.commands.run("echo still").stdout == "still\n"


def test_lists_are_filtered_and_come_in_pages(create, name):
    made = [create(metadata={"test": name, "number": str(number)}) for number in range(3)]
    ids = [sandbox.sandbox_id for sandbox in made]
    made[1].pause()

    def listed(limit=None, **query):
        pages = Sandbox.list(query=SandboxQuery(metadata={"test": name}, **query), limit=limit)
        found = []
        while pages.has_next:
            items = pages.next_items()
            assert limit is None or len(items) <= limit
            found += items
        return found

    assert {sandbox.sandbox_id for sandbox in listed()} == set(ids)
    for limit in (1, 2, 3):
        assert sorted(sandbox.sandbox_id for sandbox in listed(limit)) == sorted(ids)
    assert [sandbox.sandbox_id for sandbox in listed(state=[SandboxState.PAUSED])] == [ids[1]]
    assert {sandbox.sandbox_id for sandbox in listed(state=[SandboxState.RUNNING])} == {ids[0], ids[2]}
    one = Sandbox.list(query=SandboxQuery(metadata={"test": name, "number": "2"})).next_items()
    assert [sandbox.sandbox_id for sandbox in one] == [ids[2]] and one[0].metadata["number"] == "2"


@since(2, 60)
def test_lists_have_an_order_and_more_filters(create, name):
    begun = datetime.now(timezone.utc) - timedelta(seconds=1)
    ids = [create(metadata={"test": name}).sandbox_id for _ in range(2)]

    def listed(order=None, **query):
        items = Sandbox.list(query=SandboxQuery(metadata={"test": name}, **query), order=order).next_items()
        return [sandbox.sandbox_id for sandbox in items]

    assert (listed(), listed("asc"), listed("desc")) == (ids[::-1], ids, ids[::-1])
    assert listed(started_after=begun) == ids[::-1]
    assert listed(started_after=datetime.now(timezone.utc) + timedelta(hours=1)) == []
    assert listed(template="base") == ids[::-1] and listed(template="other") == []


def test_a_snapshot_makes_sandboxes(create, name):
    sandbox = create()
    sandbox.files.write("/home/user/warm", "warm")
    snapshot = sandbox.create_snapshot(name=name)
    assert snapshot.names and sandbox.is_running()
    nameless = sandbox.create_snapshot()
    child = create(snapshot.snapshot_id)
    assert child.files.read("/home/user/warm") == "warm"
    found = Sandbox.list_snapshots(sandbox_id=sandbox.sandbox_id).next_items()
    assert {one.snapshot_id for one in found} == {snapshot.snapshot_id, nameless.snapshot_id}
    for one in (snapshot, nameless):
        assert Sandbox.delete_snapshot(one.snapshot_id)
        assert not Sandbox.delete_snapshot(one.snapshot_id)
    with pytest.raises(SandboxException):
        Sandbox.create(snapshot.snapshot_id)
    assert child.files.read("/home/user/warm") == "warm"


def test_a_fork_gives_children_that_go_their_own_ways(create):
    sandbox = create(metadata={"a": "b"})
    sandbox.files.write("/tmp/who", "parent")
    children = sandbox.fork(count=3, timeout=100)
    try:
        assert len({child.sandbox_id for child in [sandbox, *children]}) == 4
        for child in children:
            assert child.files.read("/tmp/who") == "parent"
            child.files.write("/tmp/who", child.sandbox_id)
            assert child.get_info().metadata == {"a": "b"} and 80 < left(child) <= 100
        for child in children:
            assert child.files.read("/tmp/who") == child.sandbox_id
        assert sandbox.files.read("/tmp/who") == "parent"
    finally:
        for child in children:
            child.kill()


def test_metrics_say_what_is_used(create):
    sandbox = create()
    sandbox.commands.run("head -c 20000000 /dev/zero > /home/user/big; sync")
    (*_, last) = sandbox.get_metrics()
    assert last.cpu_count == 1 and 0 <= last.cpu_used_pct <= 100
    assert 0 < last.mem_used < last.mem_total < 600 << 20
    assert 20_000_000 < last.disk_used < last.disk_total
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    assert sandbox.get_metrics(start=later) == []


@since(2, 60)
def test_a_request_with_a_key_of_its_own_makes_one_sandbox(create, name):
    first = create(idempotency_key=name, metadata={"a": "b"})
    second = create(idempotency_key=name, metadata={"a": "b"})
    assert first.sandbox_id == second.sandbox_id
    with pytest.raises(SandboxException):
        Sandbox.create(idempotency_key=name, metadata={"a": "c"})


def test_what_is_not_served_says_so(create):
    with pytest.raises(SandboxException, match="(?i)memory"):
        create().pause(keep_memory=False)
