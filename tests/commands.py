"""The command as a test runs it, and what it should have said."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from xdpkit.cli.main import main
from xdpkit.device import netdev

XDPKIT = str(Path(sys.executable).with_name("xdpkit"))
HERE = Path(__file__).resolve().parents[1]
PIPELINES = sorted((HERE / "pipelines").glob("*.py"))
DNS, FIREWALL, REFLECT = (str(HERE / "pipelines" / f"{name}.py") for name in ("dns", "firewall", "reflect"))


def xdpkit(port, *args):
    """Run the command to its end in the namespace of `port`: main() in this process, which is fast."""
    out, err = io.StringIO(), io.StringIO()
    with port.namespace, redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["xdpkit", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            main()
    assert isinstance(caught.value.code, int)
    return subprocess.CompletedProcess(args, caught.value.code, out.getvalue(), err.getvalue())


def process(port, *args, before=(), **options):
    """The same as a process of its own."""
    options = {"capture_output": True, "text": True, "timeout": 60} | options
    return port.namespace.run([*before, XDPKIT, *map(str, args)], check=False, **options)


def start(port, *args, **options):
    """Start `xdpkit run` and wait for the line that says it is ready."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    child = port.namespace.popen([XDPKIT, "run", *map(str, args), "-i", port.name], **options)
    ready = child.stderr.readline()
    ready = ready if isinstance(ready, str) else ready.decode()
    assert re.match(r"xdpkit: [\w-]+ on right: (native|generic|AF_PACKET)", ready), (ready, child.stderr.read())
    return child


def stop(child, number=signal.SIGINT):
    """(exit status, stdout, rest of stderr) after a signal."""
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    return child.returncode, out, err


def held(port):
    with port.namespace:
        return netdev.xdp_holders(port.index)


def fails(done, *words):
    """It failed with exactly one line, that has these words."""
    assert done.returncode == 1, done.stderr
    assert done.stdout in ("", None) or "seen" in done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("xdpkit: ")
    for word in words:
        assert word in done.stderr
    return done


def misused(done, *words):
    """It was called wrongly and said so, as click does."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 5
    for word in words:
        assert word in re.sub(r"\s+", " ", done.stderr)
