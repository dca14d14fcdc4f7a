"""Sets of ipset become declarations that read their members from the file that ipset wrote."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from commands import XDPKIT

from xdpkit import Pipeline, load_file
from xdpkit.firewall.ipset import declarations
from xdpkit.firewall.nft import NftError
from xdpkit.sets.live import declared

SAVED = """create blocked hash:net family inet hashsize 1024 maxelem 65536
add blocked 192.0.2.0/24
add blocked 198.51.100.7
create blocked6 hash:ip family inet6 hashsize 64 maxelem 1000 timeout 600
add blocked6 2001:db8::1 timeout 300
create web hash:ip,port family inet maxelem 100
add web 203.0.113.1,tcp:443
create ip hash:mac maxelem 10
add ip 02:00:00:00:00:01
create lists list:set size 8
create wires hash:net,iface family inet
create nets hash:net,net family inet
"""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([XDPKIT, *args], capture_output=True, text=True, check=False, timeout=60)


def test_declarations_read_the_members_from_the_file_itself(tmp_path: Path):
    (tmp_path / "sets.ipset").write_text(SAVED)
    done = run("firewall", "import", "ipset", str(tmp_path / "sets.ipset"))
    assert done.stdout.splitlines() == [
        'blocked = pipe.set("blocked", ip.src, capacity=65536, source="sets.ipset")',
        'blocked6 = pipe.set("blocked6", ip6.src, intervals=False, capacity=1000, timeouts=True, source="sets.ipset")',
        'web = pipe.set("web", ip.src, tcp.dport, capacity=100, source="sets.ipset")',
        'ip_ = pipe.set("ip", eth.src, capacity=10, source="sets.ipset")',
    ]
    assert done.returncode == 1
    assert [line.partition(": ")[2].partition(":")[0] for line in done.stderr.splitlines()] == [
        "lists",
        "wires",
        "nets",
    ]
    head = "from xdpkit import Pipeline, eth, ip, ip6, tcp\npipe = Pipeline('sets')\n"
    (tmp_path / "sets.py").write_text(head + done.stdout)
    pipe: Pipeline = load_file(tmp_path / "sets.py")
    members = {s.name: [s.text(e) for e in declared(s, tmp_path).entries()] for s in pipe.sets}
    assert members == {
        "blocked": ["192.0.2.0/24", "198.51.100.7"], "blocked6": ["2001:db8::1"], "web": ["203.0.113.1 . 443"],
        "ip": ["02:00:00:00:00:01"],
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "add blocked 192.0.2.1\n", "table inet t {\n}\n"])
def test_what_is_no_ipset_is_refused_in_one_line(text: str, tmp_path: Path):
    with pytest.raises(NftError, match="no output of ipset save"):
        declarations(text, "x")
    (tmp_path / "x").write_text(text)
    done = run("firewall", "import", "ipset", str(tmp_path / "x"))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
