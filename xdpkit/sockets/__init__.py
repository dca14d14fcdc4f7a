"""Packets to user space and out again: UMEM and its frames, AF_XDP sockets and how they are opened, packet sockets,
ring
buffers of copies, batches for Python, C workers, and forwarding between two devices.  It is handed a program, a device
and what was got of it; it knows no link.  It imports ``kernel``, ``device``, ``files`` and below."""
