import time

import pytest
from e2b import CommandExitException
from e2b.sandbox.commands.command_handle import PtySize


class Screen:
    """What a terminal has shown so far."""

    def __init__(self, handle):
        self.handle = handle
        self.shown = b""

    def until(self, text):
        """Reads until `text` is there. The handle's own reading waits, so the shell must come to say it."""
        for _, _, output in self.handle:
            self.shown += output or b""
            if text in self.shown:
                return self.shown
        raise AssertionError(f"{text!r} did not come: {self.shown!r}")


def test_a_terminal_takes_input_and_shows_output(sandbox):
    handle = sandbox.pty.create(PtySize(rows=24, cols=80), envs={"A": "x"}, cwd="/tmp")
    sandbox.pty.send_stdin(handle.pid, b"echo $A-$((6 * 7)) $(pwd) $TERM; tty; stty size\n")
    screen = Screen(handle)
    screen.until(b"x-42 /tmp xterm")
    screen.until(b"24 80")
    assert b"/dev/pts/" in screen.shown
    sandbox.pty.send_stdin(handle.pid, b"exit 3\n")
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert caught.value.exit_code == 3


def test_a_terminal_changes_its_size(sandbox):
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.resize(handle.pid, PtySize(rows=50, cols=132))
    sandbox.pty.send_stdin(handle.pid, b"stty size\n")
    Screen(handle).until(b"50 132")
    assert sandbox.pty.kill(handle.pid)


def test_a_killed_terminal_is_gone(sandbox, eventually):
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    assert sandbox.pty.kill(handle.pid)
    with pytest.raises(CommandExitException):
        handle.wait()
    eventually(lambda: not sandbox.pty.kill(handle.pid))


def test_connect_takes_up_a_terminal(sandbox):
    first = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.send_stdin(first.pid, b"secret=kept\n")
    time.sleep(0.2)
    first.disconnect()
    second = sandbox.pty.connect(first.pid)
    sandbox.pty.send_stdin(first.pid, b"echo is-$secret\n")
    Screen(second).until(b"is-kept")
    assert sandbox.pty.kill(first.pid)


def test_an_interrupt_reaches_the_foreground(sandbox):
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.send_stdin(handle.pid, b"sh -c 'echo begun-$((1 + 1)); exec sleep 60'; echo over-$?\n")
    screen = Screen(handle)
    # It says so itself: an interrupt before it is in the foreground would be the shell's.
    screen.until(b"begun-2")
    sandbox.pty.stream_input(handle.pid, [b"\x03"])
    screen.until(b"^C")
    time.sleep(0.5)
    sandbox.pty.stream_input(handle.pid, [b"echo ", b"status-$?\n"])
    screen.until(b"status-130")
    assert sandbox.pty.kill(handle.pid)
