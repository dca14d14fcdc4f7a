"""What this machine, its kernel and a device can do for xdpkit, and advice for what they cannot do.  It imports
``kernel``, ``device``, ``sockets`` (for the options) and rooms below, but not ``link``."""
