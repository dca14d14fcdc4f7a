"""The compiled program: it names the lines it came from, holds nothing it does not need, and is the same each time."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from llvmlite import ir

import xdpkit
from xdpkit.compiler import HOOKS, compile_pipeline
from xdpkit.compiler import rule_tables as table
from xdpkit.compiler.built import Built
from xdpkit.compiler.conditions import Conditions
from xdpkit.compiler.linker import longest_jump
from xdpkit.kernel.loaded import LoadedProgram
from xdpkit.kernel.program import Program
from xdpkit.language.actions import COUNT, DROP, PASS, REDIRECT, TX, Mirror
from xdpkit.language.errors import PipelineError, VerifierError, Where
from xdpkit.language.expr import Expr, here
from xdpkit.language.fields import FIELDS
from xdpkit.language.headers import Field, eth, icmp6, inner, ip, ip6, payload, pkt, tcp, udp
from xdpkit.language.pcap import pcap
from xdpkit.language.pipeline import Pipeline, load_file
from xdpkit.link.ruleset import Ruleset
from xdpkit.meaning.evaluate import evaluate

RULES = """\
from xdpkit.language.actions import *
from xdpkit.language.headers import *
from xdpkit.language.pipeline import Pipeline

pipe = Pipeline("rules", default=PASS)
pipe.rule(udp.dport == 53, REDIRECT, name="dns")

slow = ip6.hlim < 2
pipe.rule(
    slow
    & ~tcp,
    TX,
)
pipe.rule(ip.src.within("192.0.2.0/24"), DROP, name="bad")
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A pipeline file."""
    path = tmp_path / "rules.py"
    path.write_text(RULES)
    return path


# ---- line info ----


@pytest.mark.root
@pytest.mark.parametrize("hook", HOOKS)
def test_the_loaded_program_names_the_lines_of_the_pipeline(rules, hook):
    with Program(compile_pipeline(load_file(rules), hook)) as program:
        found = {line.where.line: line.text.strip() for line in program.lines() if line.where.file == str(rules)}
        instructions = [line.instruction for line in program.lines()]
    wanted = {number: RULES.splitlines()[number - 1].strip() for number in (6, 8, 14)}
    assert found.items() >= wanted.items()
    assert instructions == sorted(set(instructions))
    assert instructions[-1] < program_length(rules, hook)


def program_length(rules: Path, hook: str) -> int:
    with Program(compile_pipeline(load_file(rules), hook)) as program:
        return program.info()["xlated_bytes"] // 8


@pytest.mark.root
def test_a_condition_from_another_file_is_named_by_that_file(tmp_path, monkeypatch):
    shared, path = tmp_path / "shared_conditions.py", tmp_path / "rules.py"
    shared.write_text("from xdpkit.language.headers import *\n\nlocal = ip6.hlim < 2\n")
    path.write_text("from shared_conditions import local\n" + RULES.replace("slow\n", "local\n"))
    monkeypatch.syspath_prepend(tmp_path)
    with Program(compile_pipeline(load_file(path))) as program:
        places = {line.where: line.text for line in program.lines()}
    assert places[Where(str(shared), 3)] == "local = ip6.hlim < 2"


# ---- what the verifier refuses ----


@dataclass(frozen=True, slots=True, eq=False)
class Unchecked(Expr):
    """Reads memory at an address that is a field's value: nobody has checked what is there."""

    field: Field


def lower_unchecked(self: Conditions, expr: Unchecked, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
    builder.debug_metadata = self.classify.debug.location(expr.where)
    address = builder.zext(self.reader.field(builder, expr.field.spec, no), ir.IntType(64))
    byte = builder.load(builder.inttoptr(address, ir.IntType(8).as_pointer()))
    builder.cbranch(builder.icmp_unsigned("==", byte, ir.IntType(8)(0)), yes, no)


Conditions.lower.register(Unchecked, lower_unchecked)


def refused(pipe: Pipeline) -> VerifierError:
    with pytest.raises(VerifierError) as caught:
        Program(compile_pipeline(pipe))
    return caught.value


@pytest.mark.root
def test_a_refused_program_names_the_rule_and_its_line():
    pipe = Pipeline("refused")
    pipe.rule(udp.dport == 53, DROP, name="before")
    rule = pipe.rule(Unchecked(pkt.len, where=here()), DROP, name="culprit")
    pipe.rule(udp.dport == 54, DROP, name="after")
    error = refused(pipe)
    assert error.where == rule.where
    assert error.where.file == __file__
    assert error.rule == "culprit"
    assert str(error).startswith(f"{rule.where}: the kernel refused rule 'culprit'")
    assert "invalid mem access 'scalar'" in str(error).lower()
    assert "\n" not in str(error)
    assert re.search(r"^processed \d+ insns", error.log, re.MULTILINE), "the whole log is kept"


@pytest.mark.root
def test_a_refused_condition_declared_apart_still_names_its_rule():
    bad = Unchecked(pkt.len, where=here())
    pipe = Pipeline("refused")
    pipe.rule(udp.dport == 53, DROP, name="innocent")
    pipe.rule((ip.ttl > 1) & bad, DROP, name="culprit")
    error = refused(pipe)
    assert (error.where, error.rule) == (bad.where, "culprit")


@pytest.mark.root
def test_a_refused_program_leaves_nothing_loaded(tmp_path):
    """And says so each time."""
    pipe = Pipeline("refused")
    pipe.rule(Unchecked(pkt.len, where=here()), DROP)
    descriptors = Path("/proc/self/fd")
    refused(pipe)
    before = len(list(descriptors.iterdir()))
    refused(pipe)
    assert len(list(descriptors.iterdir())) == before


def test_an_expression_that_cannot_be_lowered_is_an_error():
    pipe = Pipeline("p")
    pipe.rule(Expr(where=here()), DROP)
    with pytest.raises(TypeError, match="no lowering for Expr"):
        compile_pipeline(pipe)


# ---- nothing that no rule reads ----


def size(*conditions: object, hook: str = "xdp") -> int:
    """Bytes of the translated program with a rule for each condition."""
    pipe = Pipeline("p")
    for condition in conditions:
        pipe.rule(condition, DROP)
    with Program(compile_pipeline(pipe, hook)) as program:
        return program.info()["xlated_bytes"]


@pytest.mark.root
@pytest.mark.parametrize("hook", HOOKS)
def test_headers_that_no_rule_reads_are_gone_from_the_program(hook):
    empty, frame = size(hook=hook), size(pkt.len < 64, hook=hook)
    assert max(empty, frame) < size(eth, hook=hook) < size(ip.ttl == 1, hook=hook)
    assert max(empty, frame) < 50 * 8


@pytest.mark.root
def test_each_header_costs_only_the_walk_that_leads_to_it():
    """Not so in the socket filter, whose loads are calls of the kernel, which LLVM does not take out."""
    link, v4, v6 = size(eth), size(ip.ttl == 1), size(ip6.hlim == 1)
    assert size(pkt.len < 64) < link < v4 < size(ip.ttl == 1, udp.dport == 53)
    assert link < v6 < size(ip6.hlim == 1, icmp6.type == 1)
    assert max(v4, v6) < size(udp) - 60 * 8, "the loop over extension headers is gone"


@pytest.mark.root
def test_a_rule_behind_one_that_takes_everything_costs_nothing():
    pipe = Pipeline("p")
    pipe.rule(pkt, DROP)
    shadowed = Pipeline("p")
    shadowed.rule(pkt, DROP)
    shadowed.rule(tcp.flags == 2, TX)
    with Program(compile_pipeline(pipe)) as a, Program(compile_pipeline(shadowed)) as b:
        assert a.info()["xlated_bytes"] == b.info()["xlated_bytes"]


# ---- the same each time ----

COMPILE = """
import sys
from xdpkit.compiler import compile_pipeline
from xdpkit.language.pipeline import load_file
sys.stdout.buffer.write(compile_pipeline(load_file(sys.argv[1]), sys.argv[2]).object)
"""


@pytest.mark.root
@pytest.mark.parametrize("hook", HOOKS)
def test_compiling_again_gives_the_same_object(rules, hook, tmp_path):
    first = compile_pipeline(load_file(rules), hook).object
    assert compile_pipeline(load_file(rules), hook).object == first
    for seed in ("1", "2"):
        run = [sys.executable, "-c", COMPILE, str(rules), hook]
        again = subprocess.run(run, check=True, capture_output=True, cwd=tmp_path, env={"PYTHONHASHSEED": seed}).stdout
        assert again == first


@pytest.mark.parametrize("hook", HOOKS)
def test_the_object_does_not_say_where_xdpkit_was_built(rules, hook):
    code = compile_pipeline(load_file(rules), hook).object
    sources = {path.decode() for path in re.findall(rb"(/[\x21-\x7e]+\.[ch])\0", code)}
    assert f"/xdpkit/bpf/{hook.removesuffix('_frags')}.bpf.c" in sources
    assert all(path.startswith(("/xdpkit/bpf/", "/usr/include/")) for path in sources), sources
    assert bytes(Path(xdpkit.__file__).parent) not in code


def test_an_unknown_hook_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="hook 'nic': one of xdp, xdp_frags, tc, socket"):
        compile_pipeline(Pipeline("p"), "nic")


# ---- many rules ----

FRAME = bytes.fromhex("02" * 12 + "0800" + "4500001c00000000401100000a0000010a000002" + "0001000000080000")


def judged(program: LoadedProgram, source: int, port: int) -> str:
    """The rule for a UDP packet, which must be that of the reference."""
    frame = FRAME[:26] + source.to_bytes(4) + FRAME[30:36] + (port & 0xFFFF).to_bytes(2) + FRAME[38:]
    taken, _ = program.judge(frame)
    assert taken is evaluate(program.pipeline, frame)
    return taken.name


@pytest.mark.root
def test_a_thousand_rules_compile_load_and_keep_their_order():
    """Prefixes and overlapping ranges: what a branch tells the verifier about one must not multiply with the others."""
    pipe = Pipeline("many", default=PASS)
    for n in range(1000):
        source = ip.src.within(f"10.{n >> 4}.{(n & 15) << 4}.0/20")
        pipe.rule(source & udp.dport.between(n, n + 99), (DROP, TX, REDIRECT)[n % 3])
    with Program(compile_pipeline(pipe), explain=True) as program:
        for n in (0, 1, 15, 16, 500, 998, 999):
            for port, inside in ((n - 1, False), (n, True), (n + 99, True), (n + 100, False)):
                taken = judged(program, 0x0A000000 | n << 12, port)
                assert taken == (f"rule-{n + 1}" if inside else "default")
        assert program.info()["verified_instructions"] < 400_000


@pytest.mark.root
def test_the_effort_of_the_verifier_grows_with_the_rules_and_not_with_their_square():
    def effort(rules: int) -> int:
        pipe = Pipeline("many")
        for n in range(rules):
            pipe.rule(ip.src.within(f"10.{n >> 8}.{n & 255}.0/24") & (tcp.dport == n % 7), DROP)
        with Program(compile_pipeline(pipe)) as program:
            return program.info()["verified_instructions"]

    assert effort(600) < 3 * effort(300)


@pytest.mark.root
@pytest.mark.parametrize("least", [1, 16, 10**6])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_pipeline_that_reads_everything_passes_the_verifier(hook, least, monkeypatch):
    """As tables and as code, every field, payload, strings with and without a loop: no hook runs out of stack or of the
    verifier's budget.  As tables at TC without the fields inside tunnels, which are more than the stack holds there."""
    monkeypatch.setattr(table, "LEAST", least)
    pipe = Pipeline("everything")
    few = hook == "tc" and least == 1
    for spec in (s for s in FIELDS if not (few and s.name.startswith("inner."))):
        value = {"mac": "02:00:00:00:00:01", "ipv4": "192.0.2.1", "ipv6": "2001:db8::1"}.get(spec.kind, 1)
        pipe.rule(Field(spec) == value, DROP, name=spec.name)
    pipe.rule(payload[0:8] == b"ABCDEFGH", DROP)
    pipe.rule(pcap("tcp dst port 443 and net 10/8") | pcap("ip6 protochain 17"), REDIRECT)
    with Program(compile_pipeline(pipe, hook)) as program:
        assert program.info()["verified_instructions"] < 800_000


@pytest.mark.root
@pytest.mark.parametrize("hook", HOOKS)
def test_many_rules_behind_one_that_copies_packets_pass_the_verifier(hook):
    """What copies is inlined, however many rules there are: the verifier refuses it as a function by itself."""
    pipe = Pipeline("many")
    pipe.rule(udp, Mirror())
    for n in range(40):
        pipe.rule((tcp.dport == n) & (ip.ttl == n), DROP)
    with Program(compile_pipeline(pipe, hook)) as program:
        assert program.info()["verified_instructions"] < 100_000


# ---- too many rules ----


def asking(rules: int) -> Pipeline:
    """Rules that no table takes: sets, headers inside, payload at many places."""
    pipe = Pipeline("asking")
    sets = [pipe.set(f"set{n}", *fields) for n, fields in enumerate(((ip.src,), (tcp.dport, ip.dst), (inner.ip.src,)))]
    for n in range(rules // 3):
        pipe.rule(sets[n % 3] & (ip.ttl != n % 250), DROP)
        pipe.rule((inner.tcp.dport == n) & (inner.payload[n % 9 : 2] != n), PASS)
        pipe.rule((tcp.dport == n) & (payload[n % 11 : 4] == n), TX)
    return pipe


@pytest.mark.root
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("rules", [18, 30, 90])
def test_rules_that_ask_much_load_at_every_hook(hook, rules):
    with Ruleset(Built(asking(rules), {}), hook) as ruleset:
        assert ruleset.program.info()["verified_instructions"] < 500_000


@pytest.mark.root
@pytest.mark.parametrize("rules", [12, 40])
def test_where_headers_start_stays_bounded_at_tc(rules):
    pipe = Pipeline("bounded")
    for n in range(rules):
        pipe.rule(ip6.src.within(f"2001:db8:{n:x}::/48") & (udp.dport != n) | (tcp.sport == n), COUNT)
        pipe.rule((tcp.dport == n) & (payload[n % 5 * 4 : 4] == n) & (payload[n % 7 : 2] != 3), DROP)
    Program(compile_pipeline(pipe, "tc")).close()


@pytest.mark.parametrize("hook", HOOKS)
def test_assembly_is_shown_of_the_program_that_runs(hook):
    pipe = load_file(Path(__file__).parents[2] / "pipelines" / "firewall.py")
    assert compile_pipeline(pipe, hook, assembly=True).object == compile_pipeline(pipe, hook).object


@dataclass(frozen=True, slots=True, eq=False)
class Deep(Expr):
    """Needs more stack than there is."""


def lower_deep(self: Conditions, expr: Deep, builder: ir.IRBuilder, yes: ir.Block, no: ir.Block) -> None:
    builder.debug_metadata = self.classify.debug.location(expr.where)
    room = self.classify.room_for(ir.ArrayType(ir.IntType(64), 80), "deep")
    place = builder.bitcast(room, ir.IntType(64).as_pointer())
    builder.store(ir.IntType(64)(1), place)
    use = ir.InlineAsm(ir.FunctionType(ir.VoidType(), [place.type]), "", "r,~{memory}", side_effect=True)
    builder.call(use, [place])
    builder.branch(yes)


Conditions.lower.register(Deep, lower_deep)


@pytest.mark.root
def test_a_program_that_exceeds_the_stack_is_refused_at_its_rule_and_the_process_lives_on():
    pipe = Pipeline("refused")
    rule = pipe.rule(Deep(where=here()), DROP, name="deep")
    error = refused(pipe)
    assert (error.where, error.rule) == (rule.where, "deep")
    assert "stack" in str(error)


@pytest.mark.slow
def test_a_program_whose_jumps_are_too_long_is_refused_in_one_line_and_the_process_lives_on():
    pipe = Pipeline("long")
    seen = [pipe.set(f"seen{n}", ip.src, timeouts=True) for n in range(6)]
    for n in range(200):
        pipe.rule(ip & (tcp.dport == n) & ~seen[n % 6], seen[n % 6].add(timeout=5))
    with pytest.raises(PipelineError, match=r"'long' tests 200 rules one by one, .* where BPF jumps over 32767"):
        compile_pipeline(pipe)
    assert compile_pipeline(Pipeline("short")).object


def test_jumps_are_measured_in_instructions_whatever_stands_between():
    text = "\n".join(
        ["f:", "\tif w1 == 0 goto LBB0_1", "\t.loc 1 1 1", "\t#APP", "\tr1 = 5 ll", "LBB0_1:", "\tgoto LBB0_1"]
    )
    assert longest_jump(text) == 2
