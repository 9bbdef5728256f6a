import io
import urllib.request

import pytest
from e2b import FileNotFoundException, InvalidArgumentException, SandboxException
from e2b.sandbox.filesystem.filesystem import FileType

BINARY = bytes(range(256)) * 41


def test_text_and_bytes_come_back(sandbox, directory):
    info = sandbox.files.write(f"{directory}/text", "žluťoučký 🌍\n")
    assert (info.name, info.type, info.path) == ("text", FileType.FILE, f"{directory}/text")
    assert sandbox.files.read(f"{directory}/text") == "žluťoučký 🌍\n"
    sandbox.files.write(f"{directory}/binary", BINARY)
    assert sandbox.files.read(f"{directory}/binary", format="bytes") == BINARY
    sandbox.files.write(f"{directory}/empty", "")
    assert sandbox.files.read(f"{directory}/empty") == ""


@pytest.mark.parametrize("gzip", [False, True])
@pytest.mark.parametrize("octets", [None, True])
def test_each_way_to_write(sandbox, directory, gzip, octets):
    for data in [BINARY, io.BytesIO(BINARY), iter([BINARY[:100], BINARY[100:]])]:
        sandbox.files.write(f"{directory}/file", data, gzip=gzip, use_octet_stream=octets)
        assert sandbox.files.read(f"{directory}/file", format="bytes", gzip=gzip) == BINARY
    if not octets and not gzip:
        sandbox.files.write(f"{directory}/file", io.BytesIO(BINARY), use_octet_stream=False)
        assert sandbox.files.read(f"{directory}/file", format="bytes") == BINARY


def test_large_files_stream(sandbox, directory):
    block = BINARY * 100
    blocks = 50
    sandbox.files.write(f"{directory}/large", (block for _ in range(blocks)))
    assert sandbox.files.get_info(f"{directory}/large").size == len(block) * blocks
    with sandbox.files.read(f"{directory}/large", format="stream") as stream:
        assert b"".join(stream) == block * blocks
    total = sandbox.commands.run(f"sha256sum < {directory}/large | cut -c1-16").stdout.strip()
    import hashlib

    assert hashlib.sha256(block * blocks).hexdigest().startswith(total)


def test_names_are_any_text(sandbox, directory):
    for name in ["a b", "ž 🌍", "a+b%20c&d=e", "-n", "new\nline", "q\"uo'te", "#?", "~"]:
        path = f"{directory}/{name}"
        sandbox.files.write(path, name)
        assert sandbox.files.read(path) == name
        assert sandbox.files.get_info(path).name == name
        sandbox.files.write(path, name, use_octet_stream=True)
    assert len(sandbox.files.list(directory)) == 8


def test_several_files_at_once(sandbox, directory):
    entries = [{"path": f"{directory}/sub{number}/file", "data": str(number)} for number in range(20)]
    written = sandbox.files.write_files(entries)
    assert [info.path for info in written] == [entry["path"] for entry in entries]
    assert all(sandbox.files.read(entry["path"]) == entry["data"] for entry in entries)
    assert sandbox.files.write_files([]) == []


def test_write_replaces_and_makes_directories(sandbox, directory):
    path = f"{directory}/a/b/c"
    sandbox.files.write(path, "a long first text")
    sandbox.commands.run(f"chmod 751 {path}")
    sandbox.files.write(path, "short")
    assert sandbox.files.read(path) == "short"
    assert sandbox.files.get_info(path).mode == 0o751


def test_info_says_what_ls_says(sandbox, directory):
    sandbox.commands.run(f"cd {directory} && echo four > file && chmod 640 file && mkdir dir && ln -s file link")
    file = sandbox.files.get_info(f"{directory}/file")
    assert (file.name, file.type, file.path) == ("file", FileType.FILE, f"{directory}/file")
    assert (file.size, file.mode, file.permissions) == (5, 0o640, "-rw-r-----")
    owner, group, modified = sandbox.commands.run(f"stat -c '%U %G %Y' {directory}/file").stdout.split()
    assert (file.owner, file.group, int(file.modified_time.timestamp())) == (owner, group, int(modified))
    assert file.symlink_target is None and file.metadata is None
    assert sandbox.files.get_info(f"{directory}/dir").type == FileType.DIR
    assert sandbox.files.get_info(f"{directory}/dir").permissions == "drwxr-xr-x"
    link = sandbox.files.get_info(f"{directory}/link")
    assert (link.type, link.symlink_target) == (FileType.SYMLINK, f"{directory}/file")


def test_list_and_depth(sandbox, directory):
    sandbox.commands.run(f"mkdir -p {directory}/one/two/three && touch {directory}/one/file")
    names = lambda depth: [entry.name for entry in sandbox.files.list(directory, depth=depth)]
    assert names(1) == names(None) == ["one"]
    assert names(2) == ["one", "file", "two"]
    assert names(9) == ["one", "file", "two", "three"]
    with pytest.raises(FileNotFoundException):
        sandbox.files.list(f"{directory}/missing")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.list(f"{directory}/one/file")


def test_make_rename_exists_and_remove(sandbox, directory):
    assert sandbox.files.make_dir(f"{directory}/a/b")
    assert not sandbox.files.make_dir(f"{directory}/a/b")
    sandbox.files.write(f"{directory}/a/b/file", "x")
    info = sandbox.files.rename(f"{directory}/a", f"{directory}/new/place")
    assert (info.name, info.type) == ("place", FileType.DIR)
    assert sandbox.files.exists(f"{directory}/new/place/b/file")
    assert not sandbox.files.exists(f"{directory}/a")
    assert not sandbox.files.exists(f"{directory}/new/place/b/file/below")
    sandbox.files.remove(f"{directory}/new")
    assert sandbox.files.list(directory) == []
    with pytest.raises(FileNotFoundException):
        sandbox.files.rename(f"{directory}/missing", f"{directory}/x")


def test_what_is_missing_or_no_file_is_said(sandbox, directory):
    with pytest.raises(FileNotFoundException, match="missing"):
        sandbox.files.read(f"{directory}/missing")
    with pytest.raises(FileNotFoundException, match="missing"):
        sandbox.files.get_info(f"{directory}/missing")
    for path in [directory, "/dev/zero"]:
        with pytest.raises(InvalidArgumentException):
            sandbox.files.read(path)
        with pytest.raises(InvalidArgumentException):
            sandbox.files.write(path, "x")
    with pytest.raises(InvalidArgumentException, match="ghost"):
        sandbox.files.read(f"{directory}/x", user="ghost")


def test_a_user_may_what_the_user_may(sandbox, directory):
    sandbox.files.write(f"{directory}/secret", "s", user="root")
    sandbox.commands.run(f"chmod 600 {directory}/secret; chmod 777 {directory}", user="root")
    with pytest.raises(SandboxException, match="403|denied"):
        sandbox.files.read(f"{directory}/secret", user="nobody")
    sandbox.files.write(f"{directory}/own", "x", user="nobody")
    assert sandbox.files.get_info(f"{directory}/own", user="nobody").owner == "nobody"


def test_metadata_stays_with_a_file(sandbox, directory):
    probe = sandbox.commands.run(
        f"touch {directory}/probe; python3 -c 'import os; os.setxattr(\"{directory}/probe\", \"user.t\", b\"\")' || echo none"
    )
    if "none" in probe.stdout:
        pytest.skip("no extended attributes in /tmp, or no python3 to see")
    written = sandbox.files.write(f"{directory}/file", "x", metadata={"Author": "A. U. Thor", "k": "v"})
    assert written.metadata == {"author": "A. U. Thor", "k": "v"}
    assert sandbox.files.get_info(f"{directory}/file").metadata == written.metadata
    moved = sandbox.files.rename(f"{directory}/file", f"{directory}/moved")
    assert moved.metadata == written.metadata


def test_urls_go_both_ways(sandbox, directory):
    if sandbox.connection_config.debug is False:
        pytest.skip("urls lead to the public proxy")
    boundary = "wrenn"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nby url\r\n--{boundary}--\r\n'
    ).encode()
    request = urllib.request.Request(
        sandbox.upload_url(f"{directory}/file"),
        data=body,
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    assert urllib.request.urlopen(request).status == 200
    assert urllib.request.urlopen(sandbox.download_url(f"{directory}/file")).read() == b"by url"
