"""Debug information of generated code: every instruction carries the line of the user's file that it comes from."""

from __future__ import annotations

import os

from llvmlite import ir

from ..language.errors import Where

__all__ = ["DebugInfo"]

I32 = ir.IntType(32)


class DebugInfo:
    """Debug metadata: one compile unit and subprogram for the pipeline's file, a lexical block per further file."""

    def __init__(self, module: ir.Module, where: Where):
        self.module = module
        self.files: dict[str, ir.DIValue] = {}
        self.scopes: dict[tuple[str, int], ir.DIValue] = {}
        file = self.file(where.file)
        unit = module.add_debug_info(
            "DICompileUnit",
            {
                "language": ir.DIToken("DW_LANG_C99"),
                "file": file,
                "producer": "xdpkit",
                "runtimeVersion": 0,
                "isOptimized": True,
                "emissionKind": ir.DIToken("FullDebug"),
            },
            is_distinct=True,
        )
        module.add_named_metadata("llvm.dbg.cu", unit)
        module.add_named_metadata("llvm.module.flags", [I32(2), "Debug Info Version", I32(3)])
        self.unit, self.where = unit, where
        self.subprogram = self.function("classify")

    def function(self, name: str, function: ir.Function | None = None) -> ir.DIValue:
        """DISubprogram of a generated function, at the pipeline's line; set as that of ``function``."""
        file = self.file(self.where.file)
        signature = self.module.add_debug_info("DISubroutineType", {"types": self.module.add_metadata([None])})
        subprogram = self.module.add_debug_info(
            "DISubprogram",
            {
                "name": name,
                "linkageName": name,
                "scope": file,
                "file": file,
                "line": self.where.line,
                "scopeLine": self.where.line,
                "type": signature,
                "unit": self.unit,
                "spFlags": ir.DIToken("DISPFlagDefinition | DISPFlagOptimized"),
            },
            is_distinct=True,
        )
        if function is not None:
            function.set_metadata("dbg", subprogram)
        return subprogram

    def file(self, path: str) -> ir.DIValue:
        """DIFile for ``path``; LLVM reads the text of its lines from there into the BTF line info."""
        if path not in self.files:
            directory, name = os.path.split(path.encode(errors="replace").decode())  # metadata is UTF-8
            self.files[path] = self.module.add_debug_info("DIFile", {"filename": name, "directory": directory})
        return self.files[path]

    def location(self, where: Where, subprogram: ir.DIValue | None = None) -> ir.DIValue:
        """DILocation of a line of the user's source, in classify() or another ``subprogram``."""
        subprogram = subprogram or self.subprogram
        scope = subprogram if where.file == self.where.file else self.scopes.get((where.file, id(subprogram)))
        if scope is None:
            scope = self.scopes[where.file, id(subprogram)] = self.module.add_debug_info(
                "DILexicalBlockFile", {"scope": subprogram, "file": self.file(where.file), "discriminator": 0}
            )
        return self.module.add_debug_info("DILocation", {"line": where.line, "column": 1, "scope": scope})
