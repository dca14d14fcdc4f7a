"""Names of the maps that a pipeline brings into the eBPF object; the functions on them start with the same."""


def set_symbol(name: str) -> str:
    """The map of a set."""
    return f"set_{name}"


def limit_symbol(number: int) -> str:
    """The map of the pipeline's limit of that number (Pipeline.limits)."""
    return f"limit_{number}"
