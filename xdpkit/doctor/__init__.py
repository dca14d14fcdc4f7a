"""What this machine, its kernel and a device can do for xdpkit, and what to do about what they cannot.  It imports
``kernel``, ``device``, ``sockets`` (what can be asked for) and below; no link."""
