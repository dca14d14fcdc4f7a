"""The logger of the library, ``xdpkit``: silent unless the application configures logging.

INFO: a pipeline is attached, replaced or detached, sockets are opened and closed, each with what the kernel gave.
WARNING: something else than the best was given and why, or a packet count does not add up.
"""

from __future__ import annotations

import logging

__all__ = ["logger"]

logger: logging.Logger = logging.getLogger("xdpkit")
logger.addHandler(logging.NullHandler())
