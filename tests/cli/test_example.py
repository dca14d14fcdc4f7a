"""``xdpkit example`` gives the shipped pipelines out of the package."""

import subprocess
from pathlib import Path

from commands import HERE, XDPKIT, misused

from xdpkit.language.pipeline import load_file


def test_every_example_that_the_command_gives_is_a_pipeline(tmp_path):
    listed = subprocess.run([XDPKIT, "example"], capture_output=True, text=True, check=True).stdout.splitlines()
    shipped = {path.stem for path in (Path(HERE) / "pipelines").glob("*.py")}
    assert {line.split()[0] for line in listed[:-1]} == shipped
    assert max(map(len, listed)) <= 80
    for name in (*shipped, "blocked.txt"):
        text = subprocess.run([XDPKIT, "example", name], capture_output=True, text=True, check=True).stdout
        (tmp_path / (name if "." in name else f"{name}.py")).write_text(text)
    for name in shipped:
        assert load_file(tmp_path / f"{name}.py").rules
    done = subprocess.run([XDPKIT, "example", "nothing"], capture_output=True, text=True, check=False)
    misused(done, "no example", "blocked.txt, blocklist, dns, firewall")
