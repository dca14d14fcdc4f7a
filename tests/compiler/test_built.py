"""Built files: what is read from one is what its classes declare, or one error."""

from __future__ import annotations

import copy
import json
import zipfile
from random import Random
from typing import Any

import pytest

from xdpkit import (
    DROP,
    PASS,
    RETURN,
    Forward,
    Mark,
    Pipeline,
    PipelineError,
    Redirect,
    ip,
    limit,
    log,
    pcap,
    src,
    tcp,
    udp,
)
from xdpkit.compiler.built import Built, read, write

pytestmark = pytest.mark.filterwarnings("ignore::xdpkit.PipelineWarning")


OTHER: tuple[object, ...] = (
    None, 7, -1, 1.5, True, "text", [], {}, [1], {"kind": "Rule"}, {"kind": "field", "name": "x"},
)  # fmt: skip


def rules() -> Pipeline:
    pipe = Pipeline("built", default=PASS)
    banned = pipe.set("banned", src, timeouts=True, members=["192.0.2.1"])
    verdicts = pipe.vmap("verdicts", ip.src, tcp.dport, members={("192.0.2.1", 80): DROP})
    pipe.rule(banned, DROP, name="banned")
    pipe.apply(verdicts)
    pipe.rule(pcap("tcp dst port 443"), Redirect(otherwise=DROP), name="string")
    pipe.rule(udp & ~limit("10/second", per=src), log("1/second"), banned.add(timeout=5), Mark(3), DROP, name="limit")
    pipe.rule((udp.dport == 53) | (tcp.flags & 2 == 2), Forward("eth9"), name="forward")
    web, admin = pipe.chain("web"), pipe.chain("admin")
    pipe.rule(tcp, Mark(1), web.jump, name="web")
    pipe.rule(udp, admin.goto)
    web.apply(pipe.vmap("ports", tcp.dport, members={80: RETURN, 81: admin.jump, 82: DROP}))
    admin.rule(ip.src == "192.0.2.1", DROP)
    return pipe


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The path to each value of a JSON document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


def changed(document: object, path: tuple, new: object) -> object:
    document = copy.deepcopy(document)
    at: Any = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return document


def test_a_manifest_that_was_edited_is_read_as_something_that_can_be_or_refused(tmp_path):
    path = tmp_path / "rules.xdp"
    write(Built(rules(), {}), path)
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    rng, spots = Random(1), [place for place in places(manifest) if place]
    refused = 0
    for _ in range(600):
        edited = changed(manifest, rng.choice(spots), rng.choice(OTHER))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("manifest.json", json.dumps(edited))
        try:
            found = read(path)
        except PipelineError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
        else:
            assert [str(rule) for rule in found.pipeline.outcomes]
    assert refused > 500


def test_chains_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "rules.xdp"
    pipe = rules()
    write(Built(pipe, {}), path)
    found = read(path).pipeline
    assert found.chains == pipe.chains
    assert found.rules == pipe.rules
    assert [found.rules_of(name) for name in ("", "web", "admin")] == [
        pipe.rules_of(name) for name in ("", "web", "admin")
    ]
    assert found.digest() == pipe.digest()
    assert [rule.where for rule in found.outcomes] == [rule.where for rule in pipe.outcomes]


def test_a_manifest_whose_chains_lead_back_to_themselves_is_refused(tmp_path):
    path, pipe = tmp_path / "rules.xdp", Pipeline("p")
    web = pipe.chain("web")
    pipe.rule(tcp, web.jump)
    web.rule(udp, RETURN)
    write(Built(pipe, {}), path)
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    for action in ("Jump", "Goto"):
        for chain, said in (("web", "come back to itself: web -> web"), ("none", "there is no chain 'none'")):
            edited = copy.deepcopy(manifest)
            spec = manifest["rules"][0]["action"]["chain"] | {"name": chain}
            edited["rules"][1]["action"] = {"kind": action, "verdict": manifest["default"]["verdict"], "chain": spec}
            edited["rules"][1]["action"]["verdict"] = {"kind": "verdict", "name": "CONTINUE"}
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("manifest.json", json.dumps(edited))
            with pytest.raises(PipelineError, match=said):
                read(path)


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "rules.xdp"
    write(Built(rules(), {}), path)
    monkeypatch.setattr("xdpkit.compiler.built.MAX_BYTES", 1000)
    with pytest.raises(PipelineError, match="unpacks to more than"):
        read(path)
