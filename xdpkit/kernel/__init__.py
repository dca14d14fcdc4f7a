"""The one place that talks to the kernel about BPF: the C core (cffi), programs and maps loaded through libbpf, what
this
kernel has, who holds a device, and what was got of what was asked for.  It imports ``language``, ``compiler`` and
``device``."""
