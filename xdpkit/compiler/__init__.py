"""From pipeline to eBPF object, in process: ``lower`` (expressions to LLVM IR), ``link`` (with the bitcode of the fixed
data plane, optimise, emit), ``listing`` (the result beside the Python lines).

The only I/O here is to read the bitcode that ships in the package, and to read and write built files.  Nothing here
calls the kernel.  llvmlite is imported when something is compiled: pipelines that were built ahead run without it.
"""

from .compile import compile_pipeline
from .compiled import HOOKS, Compiled, TableInfo

__all__ = ["HOOKS", "Compiled", "TableInfo", "compile_pipeline"]
