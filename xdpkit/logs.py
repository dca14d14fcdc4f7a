"""The logger of the library, ``xdpkit``: silent unless the application configures logging.

INFO: a pipeline is attached, replaced or detached; sockets are opened or closed; each with what the kernel gave.
WARNING: the kernel did not give the best choice, and why; or packet counts do not add up.
"""

from __future__ import annotations

import logging

__all__ = ["logger"]

logger: logging.Logger = logging.getLogger("xdpkit")
logger.addHandler(logging.NullHandler())
