"""The one place that talks to the kernel about BPF: the C core (cffi), programs and maps loaded through libbpf, what
this kernel has, who holds a device, and what the kernel gave of what was requested.  It imports ``language``,
``compiler`` and ``device``."""
