"""Sets that follow lists which others publish: fetched, checked, and brought into the set by the fewest changes.

A list that cannot be had, is no list, has fewer members than declared, or less than half of those it had, changes
nothing: the last good copy, which is kept in ``/var/lib/xdpkit/feeds``, stays in force, also across restarts.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..compiler.built import Built
from ..files.output import write_whole
from ..language.errors import PipelineError
from ..language.sets import Feed, SetSpec
from ..link.bridge import Bridge
from ..link.link import Link
from ..link.ruleset import folder_of
from ..sets.columns import Columns, read
from ..sets.feeds import FeedContents, read_feed
from ..sets.files import content
from ..sets.live import Change, LiveSet, declared

__all__ = ["COPIES", "FeedReport", "Feeds", "fetch", "refresh"]

#: Where the last good copies are.
COPIES = Path("/var/lib/xdpkit/feeds")
FETCH_SECONDS = 30
#: What is read of a list at most.
MOST_BYTES = 256 << 20
_CROWDSEC = "crowdsec:"
_DECISIONS = "/v1/decisions/stream?startup=true"


@dataclass(slots=True)
class FeedReport:
    """What came of one look at a feed.  ``change``: what was changed in the set, None if nothing was tried.
    ``problem``: why the list was not taken, "" if it was.  ``summary``: what was read, mended and skipped, in lines.
    ``members``: those of the list that is in force now."""

    set: str
    source: str
    change: Change | None = None
    problem: str = ""
    summary: list[str] = field(default_factory=list)
    members: int = 0
    from_copy: bool = False

    def __str__(self) -> str:
        if self.problem:
            stays = f"the last good copy stays, {self.members:,} members" if self.members else "the set stays as it is"
            return f"{self.set}: {self.problem}; {stays}"
        where = "the last good copy of " if self.from_copy else ""
        return f"{self.set}: {self.members:,} members from {where}{self.source}: {self.change}"


def fetch(feed: Feed, folder: Path = Path()) -> bytes:
    """The content of a feed, as it comes; ``folder``: where files with relative names are.  OSError says why it cannot
    be had."""
    source = feed.source
    if source.startswith(_CROWDSEC):
        key = os.environ.get("XDPKIT_CROWDSEC_KEY", "")
        if not key:
            raise OSError(errno.EACCES, f"{source}: XDPKIT_CROWDSEC_KEY is not set: 'cscli bouncers add' makes a key")
        request = urllib.request.Request(source.removeprefix(_CROWDSEC).rstrip("/") + _DECISIONS)
        request.add_header("X-Api-Key", key)
        return _get(request, source)
    if source.startswith(("http://", "https://")):
        return _get(urllib.request.Request(source), source)
    path = folder / source.removeprefix("file://")
    with open(path, "rb") as file:
        return file.read(MOST_BYTES)


def _get(request: urllib.request.Request, source: str) -> bytes:
    request.add_header("User-Agent", "xdpkit")
    try:
        with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as answer:
            data: bytes = answer.read(MOST_BYTES)
            return data
    except urllib.error.HTTPError as error:
        raise OSError(errno.EIO, f"{source}: the server says {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(errno.EIO, f"{source}: {error.reason}") from None
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(errno.EIO, f"{source}: {error or type(error).__name__}") from None


def refresh(live: LiveSet, folder: Path = Path(), *, copies: Path = COPIES, force: bool = False) -> FeedReport:
    """Look at the feed of a set, and bring the set to what it says.  ``folder``: where files with relative names are;
    ``force``: also where the list has few members.  Never raises for what the source does; OSError where the set or the
    copies cannot be written."""
    spec = live.spec
    assert spec.feed is not None
    report = FeedReport(spec.name, spec.feed.source)
    before = _count(spec, copies)
    report.members = before or 0
    try:
        data = fetch(spec.feed, folder)
        found, listed = _read(spec, data, spec.feed.source)
        report.summary = found.summary()
        report.problem = "" if force else _too_few(spec.feed, len(listed), before)
        if report.problem:
            return report
        report.change = live.sync(declared(spec).with_(listed).once())
    except (OSError, PipelineError) as error:
        report.problem = str(error.strerror or error) if isinstance(error, OSError) else str(error)
        return report
    report.members = len(listed)
    _keep(spec, copies, data, len(listed))
    return report


def _read(spec: SetSpec, data: bytes, name: str) -> tuple[FeedContents, Columns]:
    if name.startswith(_CROWDSEC):
        data = _decisions(data, name)
    found = read_feed(content(io.BytesIO(data), name), name)
    return found, read(spec, found.of(spec.fields[0].kind))


def _decisions(data: bytes, name: str) -> bytes:
    """The addresses and ranges that CrowdSec says to ban, one a line."""
    try:
        decisions = json.loads(data)["new"] or []
        wanted = [d["value"] for d in decisions if d["scope"].lower() in ("ip", "range") and d["type"] == "ban"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PipelineError(f"{name}: this is no list of decisions ({error})") from None
    return "\n".join(map(str, wanted)).encode()


def _too_few(feed: Feed, members: int, before: int | None) -> str:
    if members < max(feed.least, 1 if before else 0):
        return f"{feed.source} has {members:,} members, and {max(feed.least, 1):,} at least are wanted"
    if before is not None and members * 2 < before:
        return f"{feed.source} has {members:,} members, less than half of the {before:,} before"
    return ""


def load_copy(live: LiveSet, *, copies: Path = COPIES) -> FeedReport | None:
    """Bring a set to the last good copy of its feed; None where there is none that can be read."""
    spec = live.spec
    assert spec.feed is not None
    report = FeedReport(spec.name, spec.feed.source, from_copy=True)
    with suppress(OSError, PipelineError):
        _, listed = _read(spec, _copy(spec, copies).read_bytes(), spec.feed.source)
        report.change = live.sync(declared(spec).with_(listed).once())
        report.members = len(listed)
        return report
    return None


def _copy(spec: SetSpec, copies: Path) -> Path:
    assert spec.feed is not None
    return copies / f"{spec.name}-{hashlib.sha256(spec.feed.source.encode()).hexdigest()[:16]}.feed"


def _count(spec: SetSpec, copies: Path) -> int | None:
    """Members of the last good copy, None where there is none."""
    with suppress(OSError, ValueError):
        return int(_copy(spec, copies).with_suffix(".count").read_text())
    return None


def _keep(spec: SetSpec, copies: Path, data: bytes, members: int) -> None:
    copies.mkdir(parents=True, exist_ok=True)
    path = _copy(spec, copies)
    write_whole(path, data)
    write_whole(path.with_suffix(".count"), str(members))


def built_of(link: Link | Bridge) -> Built:
    """The pipeline that runs now, with the folder of its files."""
    return link.built if isinstance(link, Link) else link.inside.built


class Feeds:
    """The feeds of a link's sets, each looked at when its time has come."""

    def __init__(self, link: Link | Bridge, *, copies: Path = COPIES):
        self._link, self._copies = link, copies
        self._due: dict[str, float] = {}
        self.reports: dict[str, FeedReport] = {}
        self.good: dict[str, float] = {}  # time.time() of the last list that was taken, by the names of sets

    def sets(self) -> Iterable[LiveSet]:
        """The sets that have a feed."""
        return [live for live in self._link.sets.values() if live.spec.feed is not None]

    def load(self) -> list[FeedReport]:
        """Fill sets that have no member yet from the last good copies."""
        found = [load_copy(live, copies=self._copies) for live in self.sets() if not live.used]
        return [report for report in found if report is not None]

    def seconds_left(self) -> float | None:
        """Until the next look is due; None where no set has a feed."""
        due = [self._due.get(live.name, 0.0) for live in self.sets()]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def refresh(self, *, only: str = "", force: bool = False, due: bool = False) -> list[FeedReport]:
        """Look at the feeds now: of one set (``only``), or of all, or of those whose time has come (``due``)."""
        done = []
        for live in self.sets():
            feed = live.spec.feed
            if feed is None or (only and live.name != only):
                continue
            if due and time.monotonic() < self._due.get(live.name, 0.0):
                continue
            self._due[live.name] = time.monotonic() + feed.every
            report = refresh(live, folder_of(built_of(self._link)), copies=self._copies, force=force)
            self.reports[live.name] = report
            if not report.problem:
                self.good[live.name] = time.time()
            done.append(report)
        return done
