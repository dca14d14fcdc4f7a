"""From pipeline to eBPF object, in process: ``lower`` (expressions to LLVM IR), ``link`` (with the bitcode of the fixed
data plane, optimise, emit), ``listing`` (the result beside the Python lines).

Nothing here does I/O but reading the bitcode that ships in the package; nothing knows the kernel.  llvmlite is imported
when something is compiled: pipelines that were built ahead run without it.
"""

from .compile import compile_pipeline
from .compiled import HOOKS, Compiled, TableInfo

__all__ = ["HOOKS", "Compiled", "TableInfo", "compile_pipeline"]
