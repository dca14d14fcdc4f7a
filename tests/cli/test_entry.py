"""How the command starts and ends: signals from its first line on, closed streams, limits of resources, imports."""

import resource
import signal
import subprocess
import sys

import pytest
from commands import DNS, XDPKIT, held, stop

#: Does something when a module is imported.
MARK = """
import sys
class Mark:
    def find_spec(self, name, path=None, target=None):
        {do}
sys.meta_path.insert(0, Mark())
"""


@pytest.fixture(autouse=True)
def installed():
    """Signals as a shell leaves them for what runs in the foreground."""
    previous = {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("module", ["typer", "xdpkit.language.errors", "xdpkit.cli.run", "numpy"])
def test_a_signal_while_modules_are_imported_ends_it_in_one_line(make_veth, number, module):
    _, right = make_veth()
    do = f"if name == {module!r}: import os, signal; os.kill(os.getpid(), {int(number)})"
    code = MARK.format(do=do) + "from xdpkit.cli.entry import main; main()"
    command = [sys.executable, "-c", code, "run", DNS, "-i", right.name]
    done = right.namespace.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr.startswith(f"xdpkit: ended by {signal.Signals(number).name}")
    assert done.stderr.count("\n") == 1
    assert held(right) == ()


def test_a_signal_that_the_caller_ignores_is_ignored(make_veth):
    _, right = make_veth()
    command = [XDPKIT, "run", DNS, "-i", right.name, "--json"]
    child = right.namespace.popen(
        ["nohup", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    while not (line := child.stderr.readline()).startswith("xdpkit: dns on"):
        assert line
    child.send_signal(signal.SIGHUP)
    child.send_signal(signal.SIGUSR1)
    assert "is in place" in child.stderr.readline()  # it goes on
    assert stop(child)[0] == 0


@pytest.mark.parametrize("args", [["version"], ["show", DNS], ["show", DNS, "--json"], ["replay", DNS, "-", "-w", "-"]])
def test_a_closed_standard_output_is_one_line(tmp_path, args):
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", XDPKIT, *args], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert done.returncode == 2 or done.stderr.count("\n") == 1


def test_a_capture_to_a_closed_standard_output_is_one_line_and_nothing_stays_attached(make_veth):
    _, right = make_veth()
    done = right.namespace.run(
        ["sh", "-c", '"$@" >&-', "sh", XDPKIT, "run", DNS, "-i", right.name, "-w", "-"], check=False,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "xdpkit: standard output: Bad file descriptor"
    assert "Traceback" not in done.stderr
    assert held(right) == ()


@pytest.mark.parametrize(
    ("what", "limit"),
    [(resource.RLIMIT_NOFILE, n) for n in (6, 12, 18, 24)]
    + [(resource.RLIMIT_AS, megabytes << 20) for megabytes in (60, 150, 250, 350)],
)
def test_too_few_descriptors_or_too_little_memory_is_no_traceback(make_veth, what, limit):
    _, right = make_veth()
    done = right.namespace.run(
        [XDPKIT, "run", DNS, "-i", right.name, "--duration", "0.1", "-q"], check=False, capture_output=True, text=True,
        timeout=60, preexec_fn=lambda: resource.setrlimit(what, (limit, limit)),
    )  # fmt: skip
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.count("\n") == 1, done.stderr
    assert held(right) == ()


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["run", DNS, "-i", LONG], 1),
        (["run", DNS, "-i", "lo", "--mode", LONG], 2),
        (["run", DNS, "-i", "lo", "-o", LONG], 2),
        (["replay", DNS, LONG], 1),
        (["show", DNS, f"--{LONG}"], 2),
        (["doctor", LONG, "--clean"], 1),
    ],
)
def test_no_error_quotes_more_than_fits_on_a_screen(args, status):
    done = subprocess.run([XDPKIT, *args], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "characters ...]" in done.stderr
    assert len(done.stderr) < 2000


def test_the_version_and_the_help_import_nothing_of_the_data_plane():
    code = "import sys; from xdpkit.cli.entry import main\ntry: main()\nexcept SystemExit: print(sorted(sys.modules))"
    heavy = {"numpy._core", "asyncio", "scapy", "pyroute2", "llvmlite", "rich", "matplotlib", "xdpkit._core"}
    for args in (["version"], ["--version"], ["--help"], ["run", "--help"], ["set", "--help"], ["show", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        modules = set(eval(done.stdout.splitlines()[-1]))
        assert not heavy & modules, args


def test_show_imports_no_sockets_and_no_packets():
    code = "import sys; from xdpkit.cli.entry import main\ntry: main()\nexcept SystemExit: print(sorted(sys.modules))"
    for args in (["show", DNS], ["run", DNS, "-i", "nothing"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        assert not {"scapy", "matplotlib"} & set(eval(done.stdout.splitlines()[-1])), args


def test_the_package_runs_as_a_module():
    by_module = subprocess.run(
        [sys.executable, "-m", "xdpkit", "--version"], capture_output=True, text=True, check=True
    )
    by_name = subprocess.run([XDPKIT, "version"], capture_output=True, text=True, check=True)
    assert by_module.stdout == by_name.stdout != ""


def test_a_run_without_sets_and_batches_imports_neither_numpy_nor_asyncio_nor_scapy(make_veth):
    _, right = make_veth()
    command = [sys.executable, "-X", "importtime", "-m", "xdpkit", "run", DNS, "-i", right.name, "--duration", "0.1"]
    done = right.namespace.run(command, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "xdpkit.link.attach" in modules
    assert not modules & {"numpy._core", "asyncio", "scapy", "pyroute2.iproute", "importlib.metadata"}
