"""Linking: the IR of classify() with the bitcode of a hook's fixed data plane, optimised, emitted for BPF.

``classify`` becomes internal and is inlined behind the header walk; LLVM then removes every header that no rule reads.
"""

from __future__ import annotations

import re
from functools import cache

import llvmlite.binding as llvm
from llvmlite.binding.context import ContextRef, create_context

from ..language.errors import PipelineError
from .bitcode import shipped
from .lower import Lowered

#: BPF instruction set v3 (kernel 5.1 and later): 32-bit ALU and jumps.
CPU = "v3"
#: LLVM ends the process if a function needs more stack than this; its default is the kernel's limit of 512 bytes.  With
#: a larger limit, the kernel's verifier refuses the program instead.  Only LLVM's BPF backend has the option.
STACK_BYTES = 1 << 30
#: Most instructions that a BPF jump can pass.
REACH = (1 << 15) - 1
#: Shorter bitcode, in bytes, cannot have a longer jump: programs have one instruction for 12 bytes or more.
LONG_BYTES = 8 * REACH
#: The program's function in every hook; all others are inlined or dropped.
ENTRY = "xdpkit"
#: Functions that the verifier is to follow once by themselves, not where they are called: see bpf/track.bpf.c and
#: bpf/checksum.bpf.c.
GLOBAL = {"track": ("track_scale", "track_judge", "track_commit"), "checksum": ("complete_checksum",)}


@cache
def _text(template: str) -> str:
    return str(llvm.parse_bitcode(shipped(f"{template}.bc"), create_context()))


def copy_of(template: str, symbol: str, context: ContextRef) -> llvm.ModuleRef:
    """The module of a template with its own name, in capitals, replaced by ``symbol``, also in the BTF to come."""
    return llvm.parse_assembly(re.sub(rf"\b{template.upper()}(?=_|\b)", symbol, _text(template)), context)


@cache
def _target() -> llvm.Target:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.set_option("", f"--bpf-stack-size={STACK_BYTES}")
    return llvm.Target.from_triple("bpfel")


def link_module(rules: Lowered, hook: str) -> llvm.ModuleRef:
    """The module of ``rules`` and the data plane of ``hook``, with the walk into tunnels where rules need it.

    It has a context of its own, which goes with it: in LLVM's global one constants, types and debug information stay
    until the process ends, half a megabyte for each pipeline."""
    context = create_context()
    module = llvm.parse_bitcode(shipped(f"{hook}_shadow.bc" if rules.packet_in_map else f"{hook}.bc"), context)
    parts = (*rules.parts, *(("checksum",) if rules.sends and hook.startswith("xdp") else ()))
    for part in parts:
        if part == "inspect" and not hook.startswith("xdp"):
            continue  # sockets that hand packets on are there at XDP alone
        module.link_in(llvm.parse_bitcode(shipped(f"{hook}_{part}.bc"), context))
    for symbol, template in rules.templates.items():
        module.link_in(copy_of(template, symbol, context))
    generated = llvm.parse_assembly(rules.text, context)
    generated.triple, generated.data_layout = module.triple, module.data_layout
    module.link_in(generated)
    keep = {ENTRY, *(name for part in parts for name in GLOBAL.get(part, ()))}
    for function in module.functions:
        if not function.is_declaration and function.name not in keep:
            function.linkage = "internal"
    return module


def optimise(module: llvm.ModuleRef, *, large: bool) -> llvm.TargetMachine:
    """Inline and optimise ``module`` in place.  Returns the machine to emit it with.

    The bitcode is optimised already, so for a ``large`` program the passes that clean up after inlining are enough:
    LLVM's -O2 takes four times as long for 100 rules, and gains 1 ns in 57 (perf/filter.py)."""
    machine = _target().create_target_machine(cpu=CPU, opt=2)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    if not large:
        builder.getModulePassManager().run(module, builder)
        return machine
    passes = llvm.create_new_module_pass_manager()
    for add in (
        passes.add_always_inliner_pass,
        passes.add_sroa_pass,
        passes.add_instruction_combine_pass,
        passes.add_simplify_cfg_pass,
        passes.add_jump_threading_pass,
        passes.add_simplify_cfg_pass,
        passes.add_jump_threading_pass,
        passes.add_instruction_combine_pass,
        passes.add_aggressive_dce_pass,
        passes.add_simplify_cfg_pass,
        passes.add_sinking_pass,
        passes.add_global_dead_code_eliminate_pass,
    ):
        add()
    passes.run(module, builder)
    return machine


def check_reach(module: llvm.ModuleRef, machine: llvm.TargetMachine, rules: Lowered) -> None:
    """PipelineError where a jump of the program would be too long.

    When LLVM writes the object it checks this, and ends the process.  When it writes assembly it does not check, so
    this function counts the instructions there.  Writing assembly takes as long as writing the object, so it is left
    out for programs that are too short to have such a jump."""
    if len(rules.text) < REACH or len(module.as_bitcode()) < LONG_BYTES:
        return
    longest = longest_jump(emit_assembly(module, machine))
    if longest > REACH:
        raise PipelineError(
            f"pipeline {rules.name!r} tests {rules.chained} rules one by one, and has to jump over {longest} "
            f"instructions where BPF jumps over {REACH}: fewer rules, or sets for what they compare, or runs of rules "
            "that ask for headers, addresses and ports alone, which become tables",
            rules.where,
        )


def longest_jump(assembly: str) -> int:
    """How many instructions the longest jump passes."""
    at, labels, jumps = 0, dict[str, int](), list[tuple[int, str]]()
    for line in assembly.splitlines():
        if line.startswith("LBB"):
            labels[line.partition(":")[0]] = at
        elif line.startswith("\t") and line[1:2] not in (".", "#"):
            at += 2 if line.endswith(" ll") else 1
            if "goto" in line:
                jumps.append((at, line.rpartition(" ")[2]))
    return max((abs(labels[label] - start) for start, label in jumps), default=0)


def emit_object(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> bytes:
    """The ELF object."""
    return bytes(machine.emit_object(module))


def emit_assembly(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> str:
    """BPF assembly text with ``.loc`` directives.  It is emitted from a copy, because LLVM changes a module when it
    emits it: emitted a second time, the same module becomes a program that needs more stack."""
    return str(machine.emit_assembly(llvm.parse_bitcode(module.as_bitcode(), create_context())))
