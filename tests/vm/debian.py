"""Debian packages for the guests: fetched into a cache of ours and unpacked there, never installed.

apt runs on a private state directory, so neither the machine's package lists nor its installed packages change.  The
mirror is the one that the machine itself uses for bookworm; XDPKIT_VM_MIRROR names another.  What is here once is used
again without asking the mirror; remove the cache directory (XDPKIT_VM_CACHE, ~/.cache/xdpkit-vm) to fetch it anew.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CACHE = Path(os.environ.get("XDPKIT_VM_CACHE") or Path.home() / ".cache" / "xdpkit-vm")
HOST = "bookworm"
QEMU_SUITE = "bookworm-backports"  # bookworm's own QEMU 7.2 has no igb
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FETCH_TIMEOUT_S = 600

#: What the guest needs and Debian builds as modules; where a kernel has one built in, that is as good.
MODULES = ("virtio_pci", "igb", "virtio_net", "9p", "9pnet_virtio", "overlay", "veth", "tun", "sch_ingress", "cls_bpf")


class LabError(Exception):
    """The lab cannot be set up; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel to boot: its image, and the modules to load in that order."""

    release: str
    image: Path
    modules: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Qemu:
    """An unpacked QEMU: the program, what it must be told to find its parts, and busybox for the guest."""

    program: Path
    options: tuple[str, ...]
    environment: dict[str, str]
    busybox: Path


def qemu(say: Callable[[str], None]) -> Qemu:
    """QEMU and what of its dependencies this machine lacks, with busybox, from the cache or the mirror."""
    root = CACHE / "qemu"
    if not _complete(root, QEMU_SUITE):
        say(f"fetching QEMU from {QEMU_SUITE}")
        apt = _apt()
        simulated = apt("apt-get", "install", "-s", "--no-install-recommends", "-t", QEMU_SUITE, "qemu-system-x86")
        wanted = [f"{name}={version}" for name, version in re.findall(r"^Inst (\S+) .*?\((\S+) ", simulated, re.M)]
        if not any(package.startswith("qemu-system-x86=") for package in wanted):  # installed: fetch it all the same
            wanted += [f"{name}/{QEMU_SUITE}" for name in ("qemu-system-x86", "qemu-system-data", "seabios")]
        with _new(root, QEMU_SUITE) as new:
            _unpack(apt, [*wanted, "busybox-static"], new.path)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    found = Qemu(
        program=root / "usr/bin/qemu-system-x86_64",
        options=("-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")),
        environment={**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{root / 'lib/x86_64-linux-gnu'}"},
        busybox=root / "bin/busybox",
    )
    told = subprocess.run(
        [found.program, "--version"], env=found.environment, capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise LabError(f"QEMU in {root} does not run ({told.stderr.strip()}): remove {root} to fetch it anew")
    return found


def kernel(suite: str, say: Callable[[str], None]) -> Kernel:
    """The newest kernel of ``suite`` (full flavour: the cloud one has neither igb nor 9p)."""
    root = CACHE / f"kernel-{suite}"
    if not _complete(root, *MODULES):
        say(f"fetching a kernel from {suite}")
        apt = _apt()
        with _new(root, *MODULES) as new, tempfile.TemporaryDirectory(dir=CACHE) as unpacked:
            _unpack(apt, _kernel_packages(apt, suite), Path(unpacked))
            _pick(Path(unpacked), new.path)
    about = json.loads((root / "about.json").read_text())
    return Kernel(about["release"], root / "vmlinuz", tuple(root / name for name in about["modules"]))


def _kernel_packages(apt: Apt, suite: str) -> list[str]:
    """What holds image and modules: one package, from 6.19 on two that it depends on."""
    versions = re.findall(
        rf"\|\s+(\S+) \| \S+ {re.escape(suite)}/main ", apt("apt-cache", "madison", "linux-image-amd64")
    )
    if not versions:
        raise LabError(f"{apt.mirror} has no linux-image-amd64 in {suite}: name a full mirror in XDPKIT_VM_MIRROR")
    image = _depends(apt, f"linux-image-amd64={versions[0]}", r"linux-image-\d[^ ,]*")
    parts = _depends(apt, image[0], r"linux-(?:binary|modules)-\d[^ ,]*")
    return parts or image


def _depends(apt: Apt, package: str, pattern: str) -> list[str]:
    shown = re.search(r"^Depends: (.*)$", apt("apt-cache", "show", package), re.M)
    return re.findall(pattern, shown[1]) if shown else []


def _pick(unpacked: Path, to: Path) -> None:
    """Keep the image, and MODULES with what they depend on, decompressed, in the order to load them.

    What is no module is built in: packages from 6.19 on carry no list of those."""
    image = next(p for p in unpacked.rglob("vmlinuz*") if p.is_file())
    files = {p.name.partition(".ko")[0].replace("-", "_"): p for p in unpacked.rglob("*.ko*")}
    release = next(p.parent.name for p in unpacked.rglob("kernel") if p.parent.parent.name == "modules")
    shutil.move(image, to / "vmlinuz")
    order: list[str] = []

    def add(name: str) -> None:
        if f"{name}.ko" in order or name not in files:
            return
        data = files[name].read_bytes()
        data = lzma.decompress(data) if files[name].suffix == ".xz" else data
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in needs[1].decode().split(",") if needs and needs[1] else []:
            add(other.replace("-", "_"))
        (to / f"{name}.ko").write_bytes(data)
        order.append(f"{name}.ko")

    for name in MODULES:
        add(name)
    (to / "about.json").write_text(json.dumps({"release": release, "modules": order}))


def _unpack(apt: Apt, packages: Sequence[str], root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as debs:
        apt("apt-get", "download", "-qq", *packages, cwd=debs)
        for deb in Path(debs).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, root], check=True)


def _complete(root: Path, *made_for: str) -> bool:
    done = root / "complete"
    return done.exists() and done.read_text() == " ".join(made_for)


class _new:
    """A directory that takes its place under its name only when everything in it is there."""

    def __init__(self, root: Path, *made_for: str):
        self.root, self.made_for = root, made_for
        self.path = Path(tempfile.mkdtemp(dir=CACHE))

    def __enter__(self) -> _new:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.path)
            return
        (self.path / "complete").write_text(" ".join(self.made_for))
        shutil.rmtree(self.root, ignore_errors=True)
        self.path.rename(self.root)


class Apt:
    """apt with a state of its own below the cache, for the suites that the guests come from."""

    def __init__(self, mirror: str, suites: Sequence[str]):
        self.mirror = mirror
        home = CACHE / "apt"
        for part in ("etc/preferences.d", "etc/apt.conf.d", "state/lists/partial", "cache/archives/partial"):
            (home / part).mkdir(parents=True, exist_ok=True)
        lines = [f"deb [signed-by={KEYRING}] {mirror} {suite} main\n" for suite in suites]
        (home / "etc/sources.list").write_text("".join(lines))
        pins = "".join(f"Package: *\nPin: release n={s}\nPin-Priority: 100\n\n" for s in suites if s != HOST)
        (home / "etc/preferences.d/suites").write_text(pins)
        settings = {
            "Dir::Etc": home / "etc",
            "Dir::State": home / "state",
            "Dir::Cache": home / "cache",
            "Dir::State::status": "/var/lib/dpkg/status",
            "Acquire::Languages": "none",
            "Acquire::Retries": 3,
            "Acquire::http::Timeout": 60,
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
        }
        self._options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def __call__(self, command: str, *args: str, cwd: str | None = None) -> str:
        """What the command printed; LabError with its own words where it fails."""
        try:
            done = subprocess.run(
                [command, *self._options, *args],
                cwd=cwd, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise LabError(f"no command {command}: the guests are made of Debian packages, on a Debian host") from None
        except subprocess.TimeoutExpired:
            raise LabError(f"{command} {args[0]}: no answer from {self.mirror} in {FETCH_TIMEOUT_S} s") from None
        if done.returncode:
            said = next((s for s in done.stderr.splitlines() if s.startswith("E:")), done.stderr.strip())
            raise LabError(f"{command} {args[0]} from {self.mirror}: {said}; name a full mirror in XDPKIT_VM_MIRROR")
        return done.stdout


@cache
def _apt() -> Apt:
    """Updated once per run, and only where something must be fetched."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not KEYRING.exists():
        raise LabError(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
    apt = Apt(os.environ.get("XDPKIT_VM_MIRROR") or _mirror(), (HOST, *dict.fromkeys((QEMU_SUITE, "trixie-backports"))))
    apt("apt-get", "-qq", "update")
    return apt


def _mirror() -> str:
    """Where this machine gets bookworm from, whatever form its sources are written in."""
    told = subprocess.run(["apt-get", "update", "--print-uris"], capture_output=True, text=True, check=False)
    found = re.search(rf"^'(\S+)/dists/{HOST}/InRelease'", told.stdout, re.M)
    if not found:
        raise LabError(f"apt has no source for {HOST}: name a Debian mirror in XDPKIT_VM_MIRROR")
    return found[1]
