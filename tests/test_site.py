"""The docs as a site: it builds without a warning, and every public name is in the reference."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import xdpkit
import xdpkit.lab

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly: a warning is an error."""
    target = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(target), strict=True))
    return target


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    names = {line.split(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}
    wanted = {f"xdpkit.{name}" for name in xdpkit.__all__} | {f"xdpkit.lab.{name}" for name in xdpkit.lab.__all__}
    assert not wanted - names


@pytest.mark.slow
def test_every_page_of_the_docs_is_in_the_navigation(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert not {page for page in pages if f'href="{page}/"' not in (site / "index.html").read_text()}
