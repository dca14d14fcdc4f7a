"""Rules of nftables' JSON as text, for the comments in what is imported: libnftables-json(5)."""

from __future__ import annotations

from typing import Any

__all__ = ["rule_text", "statements_of"]

_VERDICTS = ("accept", "drop", "continue", "return", "notrack", "masquerade", "flow")


def rule_text(rule: dict[str, Any]) -> str:
    """One rule in nft's own words, without its comment."""
    return " ".join(_statement(s) for s in rule.get("expr", ()))


def statements_of(what: dict[str, Any]) -> list[dict[str, Any]]:
    """The statements for each member: older nft prints one alone, newer ones a list."""
    found = what.get("stmt", [])
    return found if isinstance(found, list) else [found]


def _statement(statement: dict[str, Any]) -> str:
    kind, what = next(iter(statement.items()))
    if kind == "match":
        operator = "" if what["op"] in ("==", "in") else f" {what['op']}"
        return f"{_text(what['left'])}{operator} {_text(what['right'])}"
    if kind in ("jump", "goto"):
        return f"{kind} {what['target']}"
    if kind == "counter":
        return "counter" if not isinstance(what, str) else f'counter name "{what}"'
    if kind == "limit" and isinstance(what, dict):
        over = "over " if what.get("inv") else ""
        unit = f" {what['rate_unit']}" if what.get("rate_unit", "packets") != "packets" else ""
        burst = f" burst {what['burst']} {what.get('burst_unit', 'packets')}" if what.get("burst") else ""
        return f"limit rate {over}{what['rate']}{unit}/{what['per']}{burst}"
    if kind == "quota" and isinstance(what, dict):
        return f"quota {'over ' if what.get('inv') else ''}{what['val']} {what['val_unit']}"
    if kind == "log":
        return " ".join(
            ["log", *(f"{k} {v!r}" if k == "prefix" else f"{k} {_text(v)}" for k, v in (what or {}).items())]
        )
    if kind == "reject":
        what = what or {}
        code = f" {what['expr']}" if "expr" in what else ""
        return f"reject with {what['type']}{code}" if what else "reject"
    if kind == "vmap":
        return f"{_text(what['key'])} vmap {_text(what['data'])}"
    if kind in ("set", "meter"):
        inside = " ".join([_text(what.get("elem", what.get("key"))), *map(_statement, statements_of(what))])
        head = f"{what['op']} {what['set']}" if kind == "set" else f"meter {what['name']}"
        return f"{head} {{ {inside} }}"
    if what is None or kind in _VERDICTS:
        return kind
    return f"{kind} {_text(what)}"


def _text(value: Any) -> str:  # noqa: PLR0912 (a case for each kind of expression)
    if isinstance(value, list):
        return (
            "{ " + ", ".join(map(_text, value)) + " }"
            if value and isinstance(value[0], list)
            else ",".join(map(_text, value))
        )
    if not isinstance(value, dict):
        return {True: "exists", False: "missing"}[value] if isinstance(value, bool) else str(value)
    kind, what = next(iter(value.items()))
    if kind == "payload" and "protocol" in what:
        return f"{what['protocol']} {what['field']}"
    if kind == "meta":
        return f"meta {what['key']}" if what["key"] not in ("iif", "oif", "iifname", "oifname") else str(what["key"])
    if kind == "ct":
        return f"ct {what['key']}"
    if kind in ("exthdr", "tcp option", "ip option"):
        name = what["name"] if kind == "exthdr" else f"{kind} {what['name']}"
        return f"{name} {what['field']}" if "field" in what else name
    if kind == "fib":
        flags = what["flags"] if isinstance(what["flags"], list) else [what["flags"]]
        return f"fib {' . '.join(flags)} {what['result']}"
    if kind == "numgen":
        return f"numgen {what['mode']} mod {what['mod']}"
    if kind == "prefix":
        return f"{_text(what['addr'])}/{what['len']}"
    if kind == "range":
        return "-".join(map(_text, what))
    if kind == "concat":
        return " . ".join(map(_text, what))
    if kind == "set":
        members = what if isinstance(what, list) else [what]
        pairs = (
            f"{_text(m[0])} : {_statement(m[1])}" if isinstance(m, list) and isinstance(m[1], dict) else _text(m)
            for m in members
        )
        return "{ " + ", ".join(pairs) + " }"
    if kind == "elem":
        timeout = f" timeout {what['timeout']}s" if "timeout" in what else ""
        return f"{_text(what['val'])}{timeout}"
    if kind in ("&", "|", "^", "<<", ">>"):
        return f" {kind} ".join(f"({_text(w)})" if isinstance(w, list) else _text(w) for w in what)
    if isinstance(what, dict):
        return f"{kind} " + " ".join(f"{k} {_text(v)}" for k, v in what.items())
    return f"{kind} {_text(what)}"
