"""Sets and verdict maps in the kernel: members as columns, replaced at once or synced by the fewest changes, pinned,
and read from and written to files.  It imports ``language``, ``kernel`` and rooms below."""
