"""The stub of the C core says what is compiled."""

from core_stub import STUB, stub


def test_the_stub_of_the_core_is_what_is_compiled():
    assert STUB.read_text() == stub(), "csrc/xdpkit.h has changed: python tests/core_stub.py writes the stub again"
