"""``python -m xdpkit``: the command ``xdpkit``."""

from .cli.entry import main

main()
