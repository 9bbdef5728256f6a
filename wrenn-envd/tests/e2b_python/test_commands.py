import time

import pytest
from e2b import CommandExitException, InvalidArgumentException, NotFoundException, TimeoutException


def test_foreground_gives_output_and_exit_code(sandbox):
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code, result.error) == ("out\n", "err\n", 0, None)


def test_a_failure_is_raised_with_all_that_was_said(sandbox):
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("echo out; echo err >&2; exit 7")
    failure = caught.value
    assert (failure.exit_code, failure.stdout, failure.stderr) == (7, "out\n", "err\n")


def test_output_is_told_as_it_comes(sandbox):
    told = []
    result = sandbox.commands.run(
        "for i in 1 2 3; do echo $i; sleep 0.1; done; echo e >&2",
        on_stdout=lambda text: told.append(("out", text, time.monotonic())),
        on_stderr=lambda text: told.append(("err", text, time.monotonic())),
    )
    assert [(kind, text) for kind, text, _ in told] == [("out", "1\n"), ("out", "2\n"), ("out", "3\n"), ("err", "e\n")]
    assert told[2][2] - told[0][2] > 0.1
    assert result.stdout == "1\n2\n3\n"


def test_unicode_survives_being_split(sandbox):
    result = sandbox.commands.run("printf '\\xf0\\x9f'; sleep 0.2; printf '\\x8c\\x8d\\n'; echo žluťoučký")
    assert result.stdout == "🌍\nžluťoučký\n"


def test_much_output_arrives_whole(sandbox):
    result = sandbox.commands.run("seq 200000")
    assert result.stdout == "".join(f"{number}\n" for number in range(1, 200001))


def test_environment_directory_and_user(sandbox, directory):
    result = sandbox.commands.run("echo $A/$B; pwd", envs={"A": "x y", "B": "ž"}, cwd=directory)
    assert result.stdout == f"x y/ž\n{directory}\n"
    assert sandbox.commands.run("id -un; echo $USER", user="nobody").stdout == "nobody\nnobody\n"
    assert sandbox.commands.run("id -un", user="root").stdout == "root\n"


def test_what_cannot_be_started_is_refused(sandbox):
    with pytest.raises(InvalidArgumentException, match="no/such"):
        sandbox.commands.run("true", cwd="/no/such/directory")
    with pytest.raises(InvalidArgumentException, match="ghost"):
        sandbox.commands.run("true", user="ghost")


def test_background_runs_on_and_can_be_waited_for(sandbox):
    begun = time.monotonic()
    handle = sandbox.commands.run("sleep 2; echo done", background=True)
    assert time.monotonic() - begun < 1.5
    assert handle.pid > 0
    assert handle.wait().stdout == "done\n"


def test_stdin_is_sent_and_closed(sandbox):
    handle = sandbox.commands.run("cat; echo end", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "one ž\n")
    handle.send_stdin(b"two\n")
    handle.close_stdin()
    assert handle.wait().stdout == "one ž\ntwo\nend\n"


def test_stdin_can_be_streamed(sandbox):
    handle = sandbox.commands.run("wc -c", background=True, stdin=True)
    sandbox.commands.stream_input(handle.pid, (b"x" * 10_000 for _ in range(50)))
    handle.close_stdin()
    assert handle.wait().stdout.strip() == "500000"


def test_without_stdin_there_is_nothing_to_read(sandbox):
    assert sandbox.commands.run("cat; echo end", stdin=False).stdout == "end\n"


def test_kill_ends_it_once(sandbox):
    handle = sandbox.commands.run("sleep 60", background=True)
    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    assert handle.kill()
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert caught.value.exit_code != 0
    assert not sandbox.commands.kill(handle.pid)
    assert handle.pid not in [process.pid for process in sandbox.commands.list()]


def test_list_tells_what_was_started(sandbox):
    handle = sandbox.commands.run("sleep 60", background=True, envs={"A": "1"}, cwd="/tmp")
    (info,) = [process for process in sandbox.commands.list() if process.pid == handle.pid]
    assert (info.cmd, info.args, info.cwd) == ("/bin/bash", ["-l", "-c", "sleep 60"], "/tmp")
    assert info.envs["A"] == "1"
    handle.kill()


def test_connect_takes_up_a_command(sandbox, directory, eventually):
    line = f"until [ -e {directory}/go ]; do sleep 0.05; done; echo late"
    first = sandbox.commands.run(line, background=True)
    first.disconnect()
    second = sandbox.commands.connect(first.pid)
    sandbox.files.write(f"{directory}/go", "")
    assert second.wait().stdout.endswith("late\n")
    eventually(lambda: first.pid not in [process.pid for process in sandbox.commands.list()])
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(first.pid)


def test_a_time_out_ends_the_command(sandbox, eventually):
    begun = time.monotonic()
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 61.5", timeout=0.5)
    assert time.monotonic() - begun < 5
    running = lambda: "sleep 61.5" in [process.args[-1] for process in sandbox.commands.list()]
    eventually(lambda: not running())


def test_many_commands_at_once(sandbox):
    handles = [sandbox.commands.run(f"sleep 0.2; echo {number}", background=True) for number in range(30)]
    assert [handle.wait().stdout for handle in handles] == [f"{number}\n" for number in range(30)]


def test_a_disconnected_command_lives_on(sandbox, directory, eventually):
    handle = sandbox.commands.run(f"sleep 0.3; echo kept > {directory}/file", background=True)
    handle.disconnect()
    eventually(lambda: sandbox.files.exists(f"{directory}/file"))
