"""Build steps that pyproject.toml cannot say: the cffi core, and the eBPF data plane as LLVM bitcode.

The bitcode is built by clang and shipped in the wheel, so that nothing but the wheel is needed to compile pipelines.
"""

import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

#: llvmlite reads bitcode of its own LLVM and of older ones; the oldest llvmlite we accept (0.45) carries LLVM 20.
CLANG_MAX = 20
CLANG_MIN = 15
ROOT = Path(__file__).parent.resolve()


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
    target.mkdir(parents=True, exist_ok=True)
    fields = runpy.run_path(str(ROOT / "xdpkit" / "language" / "fields.py"))
    generated = ROOT / "build" / "bpf"
    generated.mkdir(parents=True, exist_ok=True)
    (generated / "packet_layout.h").write_text(fields["c_header"]())
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{sysconfig.get_platform().split('-')[-1]}-linux-gnu"
    flags = [
        "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v3",
        f"-I/usr/include/{triplet}", f"-I{generated}", f"-ffile-prefix-map={ROOT}=/xdpkit",
    ]  # fmt: skip
    hooks = ("xdp", "xdp_frags", "tc", "socket")
    modules = [f"{hook}{part}" for hook in hooks for part in ("", "_beside", "_tunnel", "_mirror")]
    modules += ["set", "limit"]
    for name, output in (
        *((m, f"{m}.bc") for m in modules),
        ("generator", "generator.o"),
        ("redirects", "redirects.o"),
        ("syscalls", "syscalls.o"),
    ):
        source = str(ROOT / "bpf" / f"{name}.bpf.c")
        if not output.endswith(".bc"):
            subprocess.run([clang, *flags, "-c", source, "-o", str(target / output)], check=True)
            continue
        text = generated / f"{name}.ll"
        subprocess.run([clang, *flags, "-emit-llvm", "-S", source, "-o", str(text)], check=True)
        text.write_text(barriers_end(text.read_text()))
        assemble = ["-target", "bpf", "-x", "ir", "-Xclang", "-disable-llvm-passes", "-emit-llvm", "-c", str(text)]
        subprocess.run([clang, *assemble, "-o", str(target / output)], check=True)


def barriers_end(text: str) -> str:
    """LLVM IR with ``willreturn`` on its inline assembly without side effects: C cannot say it, and LLVM keeps a call
    that might not return, and with it the walk over headers that no rule reads."""
    groups = set(re.findall(r"^  .*\bcall .*? asm (?!sideeffect).* #(\d+)(?:,|$)", text, flags=re.MULTILINE))
    for group in groups:
        text = text.replace(f"\nattributes #{group} = {{ ", f"\nattributes #{group} = {{ willreturn ")
    return text


class BuildExt(build_ext):
    """build_ext, and the bitcode beside the extension (in the source tree for an editable install)."""

    def run(self) -> None:
        super().run()
        build_bpf(Path(self.get_ext_fullpath("xdpkit._core")).parent / "bitcode")


setup(cffi_modules=["csrc/build_core.py:ffibuilder"], cmdclass={"build_ext": BuildExt})
