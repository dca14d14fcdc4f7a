"""Pipelines: an ordered list of rules, first match wins, and a default.

A pipeline is a value: it does no I/O and knows no kernel.  ``load_file`` is the one exception, for the command line:
it runs a Python file and finds the pipeline that it declares.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .actions import PASS, Action
from .check import Finding, PipelineWarning, Seen, refuse_impossible
from .errors import PipelineError, Where
from .expr import Always, Expr, as_expr, here
from .metadata import asked

__all__ = ["Pipeline", "Rule", "load_file"]

#: classify() packs the rule into 16 bits.
MAX_RULES = 65_535
DEFAULT_NAME = "default"


@dataclass(frozen=True, slots=True)
class Rule:
    """``name``, condition, action, and the line that declared it."""

    name: str
    expr: Expr
    action: Action
    where: Where

    def __str__(self) -> str:
        return f"{self.expr} -> {self.action}"


class Pipeline:
    """A named, ordered list of rules with a ``default`` action for packets that no rule takes.

    >>> pipe = Pipeline("dns")
    >>> pipe.rule(udp.dport == 53, REDIRECT, name="dns")
    """

    def __init__(self, name: str, *, default: Action = PASS):
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}", name):
            raise PipelineError(f"pipeline name {name!r}: letters, digits, '_', '.', '-', at most 63", here())
        self.name, self.default, self.where = name, _action(default), here()
        self._otherwise = Rule(DEFAULT_NAME, Always(where=self.where), self.default, self.where)
        self._rules: list[Rule] = []
        self._names: set[str] = {DEFAULT_NAME}
        self._seen, self._findings = Seen(), list[Finding]()

    def rule(self, condition: object, action: Action, *, name: str | None = None) -> Rule:
        """Append a rule; ``name`` (unique; ``rule-N`` if not given) is what counters are known by.

        Raises PipelineError if the condition can never hold, and warns with PipelineWarning, at the line that calls, if
        an earlier rule takes all that it could match (see :meth:`check`)."""
        if len(self._rules) >= MAX_RULES:
            raise PipelineError(f"more than {MAX_RULES} rules", here())
        name = name if name is not None else f"rule-{len(self._rules) + 1}"
        if not isinstance(name, str) or not name or not name.isprintable():
            raise PipelineError(f"rule name {name!r}: a printable string is wanted", here())
        if name in self._names:
            raise PipelineError(f"rule name {name!r} is taken: counters are known by name", here())
        rule = Rule(name, as_expr(condition), _action(action), here())
        refuse_impossible(rule.expr)
        self._names.add(name)
        self._rules.append(rule)
        finding = self._seen.add(name, rule.expr, rule.where)
        if finding:
            self._findings.append(finding)
            said = f"rule {name!r} is {finding.kind}: {finding.by!r} before it takes all that it could match"
            warnings.warn_explicit(said, PipelineWarning, rule.where.file, rule.where.line)
        return rule

    def check(self) -> list[Finding]:
        """The rules that never match because of an earlier one.  What is found is certain; not all is found."""
        return list(self._findings)

    def restore(self, rules: Iterable[Rule]) -> None:
        """Append rules that were declared before, as a built file has them."""
        for rule in rules:
            self._rules.append(rule)
            self._names.add(rule.name)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules as declared, the default not among them."""
        return tuple(self._rules)

    @property
    def outcomes(self) -> tuple[Rule, ...]:
        """The rules and, last, the default as a rule that takes every packet: one counter each."""
        return (*self._rules, self._otherwise)

    @property
    def verdicts(self) -> frozenset[str]:
        """The names of all verdicts that the pipeline can give."""
        return frozenset(rule.action.verdict.name for rule in self.outcomes)

    @property
    def metadata(self) -> dict[str, Where]:
        """The metadata fields that rules test (``meta.hash``), each with the first line that does."""
        return asked(self._rules)

    def digest(self) -> str:
        """SHA-256 of what the pipeline means: names, conditions, actions; not where it stands."""
        text = "\n".join(f"{r.name}\0{r}" for r in self.outcomes)
        return hashlib.sha256(f"{self.name}\n{text}".encode()).hexdigest()

    def __repr__(self) -> str:
        return f"<Pipeline {self.name}: {len(self._rules)} rules, default {self.default}>"


def _action(action: object) -> Action:
    if not isinstance(action, Action):
        raise PipelineError(f"{action!r} is no action: PASS, DROP, TX or REDIRECT", here())
    return action


def load_file(path: str | Path) -> Pipeline:
    """The pipeline that a Python file declares: its variable ``pipe``, or the only Pipeline among its variables.

    Raises OSError if the file cannot be read and PipelineError, with the line, if it cannot be run.
    """
    path = Path(path)
    source = path.read_bytes()  # compile() knows what encoding a Python file declares
    scope: dict[str, object] = {"__name__": "__pipeline__", "__file__": str(path)}
    try:
        exec(compile(source, str(path.absolute()), "exec"), scope)
    except PipelineError:
        raise
    except SyntaxError as error:
        raise PipelineError(f"{error.msg}", Where(str(path), error.lineno or 0)) from error
    except (Exception, SystemExit) as error:
        raise PipelineError(f"{type(error).__name__}: {error}", _line_of(error, str(path.absolute()))) from error
    if isinstance(scope.get("pipe"), Pipeline):
        return scope["pipe"]  # type: ignore[return-value]
    found = list(_unique(v for v in scope.values() if isinstance(v, Pipeline)))
    if len(found) != 1:
        raise PipelineError(f"declares {len(found)} pipelines: call the one to use 'pipe'", Where(str(path), 1))
    return found[0]


def _unique(pipelines: Iterable[Pipeline]) -> Iterable[Pipeline]:
    return {id(p): p for p in pipelines}.values()


def _line_of(error: BaseException, file: str) -> Where:
    line, trace = 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return Where(file, line)
