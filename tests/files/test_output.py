"""What stands at a path that a user names as output stays what it is."""

import os
import stat
import subprocess
import threading

import pytest
from commands import DNS, XDPKIT
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from xdpkit.files.output import empty_regular_file, remove_if_empty, write_whole

FULL, NULL = os.makedev(1, 7), os.makedev(1, 3)


def test_a_new_file_has_the_mode_of_the_umask_and_nothing_else_is_left(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "new", "text")
    finally:
        os.umask(before)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    assert (tmp_path / "new").read_text() == "text"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@pytest.mark.root
def test_a_regular_file_is_replaced_through_links_and_keeps_mode_and_owner(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there/file", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o604)
    os.chown(target, 12345, 23456)
    link.symlink_to("second")
    (tmp_path / "second").symlink_to("there/file")
    with target.open() as reader:
        write_whole(link, b"new")
        assert reader.read() == "old"  # a reader of the old file keeps it whole
    now = target.stat()
    assert (link.is_symlink(), target.is_symlink(), target.read_text()) == (True, False, "new")
    assert (stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid) == (0o604, 12345, 23456)
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_a_link_to_nothing_gets_its_target(tmp_path):
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"x"


@pytest.mark.root
def test_a_device_node_is_written_into_and_stays_a_device(tmp_path):
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, NULL)
    os.mknod(tmp_path / "full", stat.S_IFCHR | 0o666, FULL)
    (tmp_path / "link").symlink_to("null")
    for name in ("null", "link"):
        write_whole(tmp_path / name, b"x")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_whole(tmp_path / "full", b"x")
    assert caught.value.filename == str(tmp_path / "full")
    for name in ("null", "full"):
        assert stat.S_ISCHR((tmp_path / name).lstat().st_mode)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_fifo_is_written_into_and_stays_a_fifo(tmp_path):
    fifo, got = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    write_whole(fifo, b"x" * 100_000)
    reader.join()
    assert (got, fifo.is_fifo()) == ([b"x" * 100_000], True)


def test_a_write_that_fails_leaves_the_old_file_and_names_the_path(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none/file"):
        with pytest.raises(OSError, match=path.name) as caught:
            write_whole(path, b"x")
        assert caught.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.root
@pytest.mark.parametrize(("kind", "number"), [("null", NULL), ("full", FULL)])
def test_build_leaves_a_device_node_what_it_is(tmp_path, kind, number):
    node = tmp_path / kind
    os.mknod(node, stat.S_IFCHR | 0o666, number)
    done = subprocess.run([XDPKIT, "build", DNS, "-o", node], capture_output=True, text=True, check=False)
    assert (done.returncode, stat.S_ISCHR(node.lstat().st_mode)) == (1 if kind == "full" else 0, True)
    assert done.stderr.count("\n") == (kind == "full")


def test_only_a_regular_file_that_is_not_appended_to_is_emptied(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with path.open("ab") as file:
        empty_regular_file(file)
    assert path.read_bytes() == b"before"
    with path.open("r+b") as file:
        empty_regular_file(file)
    assert path.read_bytes() == b""


def test_only_the_empty_file_itself_is_removed(tmp_path):
    path, link, other = tmp_path / "file", tmp_path / "link", tmp_path / "other"
    link.symlink_to("file")
    with path.open("wb") as file:
        remove_if_empty(link, file)
        other.touch()
        remove_if_empty(other, file)
        assert len(list(tmp_path.iterdir())) == 3
        remove_if_empty(path, file)
    assert not path.exists()


def test_a_replay_appends_where_the_shell_appends(tmp_path):
    wrpcap(str(tmp_path / "in.pcap"), [Ether() / IP() / UDP(dport=53)])
    log = tmp_path / "log"
    log.write_bytes(b"before")
    with log.open("ab") as file:
        subprocess.run([XDPKIT, "replay", DNS, tmp_path / "in.pcap", "-w", "-"], stdout=file, check=True)
    assert log.read_bytes()[:6] == b"before"
