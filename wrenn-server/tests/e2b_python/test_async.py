import asyncio

from e2b import AsyncSandbox


def run(work):
    """Does `work` with a sandbox."""

    async def with_sandbox():
        sandbox = await AsyncSandbox.create(timeout=300, envs={"A": "b"})
        try:
            await work(sandbox)
        finally:
            await sandbox.kill()

    asyncio.run(with_sandbox())


def test_commands_and_files():
    async def work(sandbox):
        results = await asyncio.gather(*(sandbox.commands.run(f"echo $A-{number}") for number in range(10)))
        assert [result.stdout for result in results] == [f"b-{number}\n" for number in range(10)]
        await sandbox.files.write("/tmp/a", "b" * 100_000)
        assert await sandbox.files.read("/tmp/a") == "b" * 100_000
        assert [entry.name for entry in await sandbox.files.list("/tmp")] == ["a"]

    run(work)


def test_a_pause_in_the_middle_of_a_command():
    async def work(sandbox):
        told = []
        command = await sandbox.commands.run(
            "python3 -uc 'import time\nfor i in range(200): print(i + 1), time.sleep(0.01)'", background=True, timeout=0, on_stdout=told.append
        )
        await asyncio.sleep(0.5)
        assert await sandbox.pause()
        same = await AsyncSandbox.connect(sandbox.sandbox_id, timeout=300)
        assert await same.is_running()
        result = await command.wait()
        assert result.stdout == "".join(f"{number}\n" for number in range(1, 201)) == "".join(told)

    run(work)


def test_watches_and_terminals():
    async def work(sandbox):
        events, said = [], []
        await sandbox.files.make_dir("/home/user/watched")
        watch = await sandbox.files.watch_dir("/home/user/watched", on_event=events.append)
        await sandbox.files.write("/home/user/watched/a", "")
        from e2b import PtySize

        terminal = await sandbox.pty.create(PtySize(cols=80, rows=24), on_data=said.append, timeout=0)
        await sandbox.pty.send_stdin(terminal.pid, b"echo he''llo; exit 3\n")
        for _ in range(600):
            if any(event.name == "a" for event in events) and b"hello" in b"".join(said):
                break
            await asyncio.sleep(0.1)
        assert any(event.name == "a" for event in events), events
        assert b"hello" in b"".join(said)
        await watch.stop()

    run(work)


def test_lists_forks_and_snapshots():
    async def work(sandbox):
        found = await AsyncSandbox.list().next_items()
        assert sandbox.sandbox_id in {one.sandbox_id for one in found}
        (child,) = await sandbox.fork(count=1)
        assert (await child.commands.run("echo here")).stdout == "here\n"
        assert await child.kill()
        snapshot = await sandbox.create_snapshot()
        assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id)

    run(work)
