"""Manual pages and completion say what the command line declares."""

import os
import re
import subprocess

import pytest
import typer
from commands import XDPKIT

from xdpkit.cli.main import app
from xdpkit.cli.man import write_pages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("man")
    write_pages(path, "1.2")
    return path


def commands(command, name):
    """Every command that is not hidden, by its name with those it is in."""
    yield name, command
    for each, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from commands(inner, f"{name} {each}")


ALL = dict(commands(typer.main.get_command(app), "xdpkit"))


def test_every_command_has_a_page_and_no_page_is_of_another(folder):
    assert {path.name for path in folder.iterdir()} == {f"{name.replace(' ', '-')}.1" for name in ALL}


@pytest.mark.parametrize("name", ALL)
def test_a_page_is_well_formed_and_has_every_option(folder, name):
    page = folder / f"{name.replace(' ', '-')}.1"
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", "-P-cbou", "-rLL=100n", page], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "1.2" in done.stdout
    for each in ALL[name].params:
        if not getattr(each, "hidden", False):
            for option in [*each.opts, *each.secondary_opts] if each.opts[0].startswith("-") else [each.metavar]:
                assert re.search(rf"(?m)^ +(\S+, )*{re.escape(option)}\b|{re.escape(option)}", done.stdout), option


@pytest.mark.parametrize(
    ("line", "wanted"), [("xdpkit ru", "run"), ("xdpkit set sy", "sync"), ("xdpkit run --dur", "--duration")]
)
def test_the_shell_completes_commands_and_options(line, wanted):
    asked = {"_XDPKIT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run([XDPKIT], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [wanted]


def test_every_command_has_an_example():
    without = {"xdpkit version"}
    assert {
        name for name, each in ALL.items() if not re.search("Example: .*xdpkit", f"{each.help} {each.epilog}")
    } <= without
