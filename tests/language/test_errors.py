"""One base for the errors that xdpkit defines, which stay what they were besides."""

import pathlib

import pytest

from xdpkit import FrameError, NotSupported, Pipeline, PipelineError, VerifierError, XdpkitError, attach
from xdpkit.compiler.built import as_built


@pytest.mark.parametrize("error", [PipelineError, VerifierError, NotSupported, FrameError])
def test_every_error_is_an_xdpkit_error(error):
    assert issubclass(error, XdpkitError)


def test_the_builtin_errors_that_they_were_stay():
    assert issubclass(PipelineError, ValueError)
    assert issubclass(FrameError, RuntimeError)


@pytest.mark.parametrize("file", ["pipe.py", pathlib.Path("pipe.py")])
def test_attaching_a_file_name_says_what_reads_it(file):
    with pytest.raises(TypeError, match=r"is no Pipeline, Compiled or Built: load_file\('pipe.py'\) reads"):
        attach(file, "lo")


@pytest.mark.parametrize("wrong", [None, 7, Pipeline])
def test_what_is_no_pipeline_is_named(wrong):
    with pytest.raises(TypeError, match=r"is no Pipeline, Compiled or Built$"):
        as_built(wrong)


def test_a_shadow_that_is_a_file_name_says_so_too():
    with pytest.raises(TypeError, match="load_file"):
        as_built(Pipeline("p"), "new.py")  # type: ignore[arg-type]
