"""A network laboratory on one machine: namespaces joined by veth pairs, and a traffic generator, for tests and trials.
It imports ``device`` and ``kernel``, but nothing that attaches pipelines."""

from .lab import Capture, Lab, Namespace, Port

__all__ = ["Capture", "Lab", "Namespace", "Port"]
