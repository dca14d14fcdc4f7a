"""Build steps that pyproject.toml cannot say: the cffi core, and the eBPF data plane as LLVM bitcode.

The bitcode is built by clang and shipped in the wheel, so that nothing but the wheel is needed to compile pipelines.
"""

import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

#: llvmlite reads bitcode of its own LLVM and of older ones; the oldest llvmlite we accept (0.45) carries LLVM 20.
CLANG_MAX = 20
CLANG_MIN = 15
ROOT = Path(__file__).parent.resolve()


#: Each hook: the source of its program, and what is defined for it and for the modules that are linked to it.
#: XDP: the context is a struct xdp_md, else a socket buffer.  FRAGS: the packet may be in several buffers.
#: DIRECT_ACCESS: a socket buffer is read in place.
HOOKS = {
    "xdp": ("xdp.bpf.c", ("-DXDP",)),
    "xdp_frags": ("xdp.bpf.c", ("-DXDP", "-DFRAGS")),
    "tc": ("tc.bpf.c", ("-DDIRECT_ACCESS",)),
    "socket": ("socket.bpf.c", ()),
}
#: What is compiled once: bitcode of the templates of sets and limits, and whole programs.
ONCE = {
    "set.bpf.c": "set.bc",
    "limit.bpf.c": "limit.bc",
    "generator.bpf.c": "generator.o",
    "redirects.bpf.c": "redirects.o",
    "syscalls.bpf.c": "syscalls.o",
}


def variants() -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Everything that is compiled of bpf/: source, definitions, output."""
    for hook, (source, defines) in HOOKS.items():
        yield source, defines, f"{hook}.bc"
        yield source, (*defines, "-DSHADOW"), f"{hook}_shadow.bc"
        yield "tunnel.bpf.c", defines, f"{hook}_tunnel.bc"
        yield "mirror.bpf.c", defines, f"{hook}_mirror.bc"
        yield "reject.bpf.c", defines, f"{hook}_reject.bc"
        if "-DXDP" in defines:
            yield "inspect.bpf.c", defines, f"{hook}_inspect.bc"
        if hook != "socket":  # what it hands out is a copy: no packet goes or is held back
            yield "track.bpf.c", defines, f"{hook}_track.bc"
        if "-DXDP" in defines:
            yield "checksum.bpf.c", defines, f"{hook}_checksum.bc"
    for source, output in ONCE.items():
        yield source, (), output


def find_clang() -> str:
    """A clang between CLANG_MIN and CLANG_MAX, newest first; exits with what to install."""
    names = [*(f"clang-{v}" for v in range(CLANG_MAX, CLANG_MIN - 1, -1)), "clang"]
    tried = []
    for name in names:
        path = shutil.which(name)
        if not path:
            continue
        out = subprocess.run([path, "-dumpversion"], capture_output=True, text=True, check=True).stdout
        major = int(out.split(".")[0])
        if CLANG_MIN <= major <= CLANG_MAX:
            return path
        tried.append(f"{path} is version {major}")
    sys.exit(
        f"xdpkit: the eBPF bitcode needs clang {CLANG_MIN} to {CLANG_MAX} (llvmlite must be able to read it); "
        f"{'; '.join(tried) or 'no clang was found'}: on Debian, apt-get install clang-19"
    )


def build_bpf(target: Path) -> None:
    """Compile bpf/ into ``target``: bitcode of the hooks, and the generator as an object."""
    clang = find_clang()
    shutil.rmtree(target, ignore_errors=True)  # nothing that an earlier version made goes into a wheel
    target.mkdir(parents=True)
    fields = runpy.run_path(str(ROOT / "xdpkit" / "language" / "fields.py"))
    generated = ROOT / "build" / "bpf"
    generated.mkdir(parents=True, exist_ok=True)
    (generated / "packet_layout.h").write_text(fields["c_header"]())
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{sysconfig.get_platform().split('-')[-1]}-linux-gnu"
    flags = [
        "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v3",
        f"-I/usr/include/{triplet}", f"-I{generated}", f"-ffile-prefix-map={ROOT}=/xdpkit",
    ]  # fmt: skip
    for name, defines, output in variants():
        source = str(ROOT / "bpf" / name)
        if not output.endswith(".bc"):
            subprocess.run([clang, *flags, "-c", source, "-o", str(target / output)], check=True)
            continue
        text = (generated / output).with_suffix(".ll")
        subprocess.run([clang, *flags, *defines, "-emit-llvm", "-S", source, "-o", str(text)], check=True)
        text.write_text(barriers_return(text.read_text()))
        assemble(clang, text, target / output)


def assemble(clang: str, text: Path, output: Path) -> None:
    """Make bitcode of LLVM IR.  A warning ends the build, as -Werror does where C is compiled: clang only warns where
    it drops all debug information of a module."""
    command = [clang, "-target", "bpf", "-x", "ir", "-Xclang", "-disable-llvm-passes", "-emit-llvm", "-c", str(text)]
    done = subprocess.run([*command, "-o", str(output)], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode or done.stderr:
        sys.exit(f"xdpkit: clang cannot make {output.name}: {done.stderr}")


def barriers_return(text: str) -> str:
    """LLVM IR with the attribute ``willreturn`` on inline assembly without side effects.

    LLVM removes an unused call only if it is sure to return; without the attribute it would keep the walk over headers
    that no rule reads.  Only an edit of the text can set it: clang derives the attributes of inline assembly and takes
    no others, a function with ``__attribute__((const))`` around it loses its own when it is inlined, and llvmlite can
    add attributes to functions, not to calls."""
    groups = set(re.findall(r"^  .*\bcall .*? asm (?!sideeffect).* #(\d+)(?:,|$)", text, flags=re.MULTILINE))
    for group in groups:
        text = text.replace(f"\nattributes #{group} = {{ ", f"\nattributes #{group} = {{ willreturn ")
    return text


class BuildExt(build_ext):
    """build_ext, and the bitcode beside the extension (in the source tree for an editable install)."""

    def run(self) -> None:
        super().run()
        build_bpf(Path(self.get_ext_fullpath("xdpkit._core")).parent / "bitcode")


def man_pages() -> list[str]:
    """The manual pages, made of the command's declarations; none while pip only asks what the build needs."""
    sys.path.insert(0, str(ROOT))
    try:
        from xdpkit.cli.man import write_pages
    except ModuleNotFoundError:
        return []
    finally:
        sys.path.remove(str(ROOT))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return [str(path) for path in write_pages(Path("build/man"), version)]


setup(
    cffi_modules=["csrc/build_core.py:ffibuilder"],
    cmdclass={"build_ext": BuildExt},
    data_files=[("share/man/man1", man_pages())],
)
