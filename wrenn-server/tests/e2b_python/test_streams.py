"""What E2B drops at a pause, wrenn keeps."""

import threading
import time

import pytest
from e2b import PtySize, Sandbox
from e2b.exceptions import SandboxException


def in_background(work):
    result = {}

    def run():
        try:
            result["value"] = work()
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait():
        thread.join(120)
        assert not thread.is_alive(), "it does not end"
        if "error" in result:
            raise result["error"]
        return result["value"]

    return wait


# One process, since starting one takes long in a guest that is emulated.
COUNT = """python3 -uc '
import sys, time
for i in range(1, 401):
    print(f"out-{i}")
    print(f"err-{i}", file=sys.stderr)
    time.sleep(0.01)
'"""


def expected(name):
    return "".join(f"{name}-{number}\n" for number in range(1, 401))


def test_output_goes_on_after_pauses_without_a_lost_or_repeated_byte(create):
    sandbox = create()
    wait = in_background(lambda: sandbox.commands.run(COUNT, timeout=0))
    for _ in range(3):
        time.sleep(0.7)
        assert sandbox.pause()
        time.sleep(0.5)
        Sandbox.connect(sandbox.sandbox_id, timeout=300)
    result = wait()
    assert result.stdout == expected("out") and result.stderr == expected("err") and result.exit_code == 0


def test_whoever_attaches_to_a_command_keeps_it_too(create):
    sandbox = create()
    command = sandbox.commands.run("sleep 1; " + COUNT, background=True, timeout=0)
    attached = sandbox.commands.connect(command.pid, timeout=0)
    wait = in_background(lambda: attached.wait())
    time.sleep(2)
    assert sandbox.pause()
    Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert wait().stdout == expected("out")


def test_a_fork_breaks_nothing(create):
    sandbox = create()
    wait = in_background(lambda: sandbox.commands.run(COUNT, timeout=0))
    time.sleep(0.7)
    children = sandbox.fork(count=2)
    for child in children:
        child.kill()
    assert wait().stdout == expected("out")


def test_a_terminal_outlives_a_pause(create, eventually):
    sandbox = create()
    said = []
    terminal = sandbox.pty.create(PtySize(cols=80, rows=24), timeout=0)
    in_background(lambda: terminal.wait(on_pty=lambda data: said.append(bytes(data))))
    text = lambda: b"".join(said).decode(errors="replace")
    sandbox.pty.send_stdin(terminal.pid, b"X=kept; echo be''fore\n")
    eventually(lambda: "before" in text())
    assert sandbox.pause()
    time.sleep(0.5)
    Sandbox.connect(sandbox.sandbox_id, timeout=300)
    sandbox.pty.send_stdin(terminal.pid, b"echo af''ter-$X\n")
    eventually(lambda: "after-kept" in text())
    assert text().count("before") == 1
    sandbox.pty.kill(terminal.pid)


def test_a_watch_outlives_a_pause(create, eventually):
    sandbox = create()
    sandbox.files.make_dir("/home/user/watched")
    watch = sandbox.files.watch_dir("/home/user/watched")
    sandbox.files.write("/home/user/watched/before", "")
    names = set()

    def seen(name):
        names.update(event.name for event in watch.get_new_events())
        return name in names

    eventually(lambda: seen("before"))
    assert sandbox.pause()
    Sandbox.connect(sandbox.sandbox_id, timeout=300)
    sandbox.files.write("/home/user/watched/after", "")
    eventually(lambda: seen("after"))


def test_a_stream_says_that_its_sandbox_is_over(create):
    sandbox = create()
    wait = in_background(lambda: sandbox.commands.run("sleep 1000", timeout=0))
    time.sleep(1)
    sandbox.kill()
    begun = time.monotonic()
    with pytest.raises(SandboxException):
        wait()
    assert time.monotonic() - begun < 20
