"""Reads YAML with the line of every key, so that a mistake can be named by file and line.

Source: YAML 1.2, core schema (section 10.3): ``no`` and a date are texts. What libyaml parses is
built here, since no constructor of it keeps the lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from service.errors import MappingError

_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _TEXT = (
    _TAG + name for name in ("null", "bool", "int", "float", "str")
)
# Deeper than any file that a person writes.
_DEPTH = 50


class Mapped(dict[str, Any]):
    """A mapping of a YAML file: plain values, decimals exactly as written.

    ``key_lines``, ``value_lines``: where each key and its value begin, counted from 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key_lines: dict[str, int] = {}
        self.value_lines: dict[str, int] = {}


class Listed(list[Any]):
    """A list of a YAML file; ``lines``: where each entry begins, counted from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[int] = []


class _Loader(yaml.CSafeLoader):
    """Parses by libyaml, and tells a plain scalar's type by the core schema alone."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        _FLOAT,
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)"
        r"|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)


class Node:
    """A mapping of a YAML file that knows file and line of each key.

    Its readers raise MappingError, naming file and line, when a value is of another type.
    """

    def __init__(self, content: Mapped, file: str, line: int = 1) -> None:
        self._content = content
        self.file = file
        self.start = line
        self._read: set[str] = set()

    @property
    def content(self) -> Mapped:
        """Give the mapping as loaded, with its lines."""
        return self._content

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def line(self, key: str | None = None) -> int:
        """Give the line of a key, or of the mapping itself."""
        return self.start if key is None else self._content.key_lines.get(key, self.start)

    def error(self, message: str, key: str | None = None) -> MappingError:
        """Make the error of this place."""
        return MappingError(message, file=self.file, line=self.line(key))

    def raw(self, key: str) -> Any:
        """Give a value as it is, or None; the key counts as known."""
        self._read.add(key)
        return self._content.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        """Read a text; required unless a default is given."""
        value = self.raw(key)
        if value is None:
            if default is None:
                raise self.error(f"{key} is missing", key)
            return default
        if not isinstance(value, str):
            raise self.error(f"{key} must be a text (in quotes if it looks like a number)", key)
        return value.strip()

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a list of texts; one text stands for a list of one; missing is empty."""
        value = self.raw(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, Listed) or not all(isinstance(item, str) for item in value):
            raise self.error(f"{key} must be a list of texts", key)
        return tuple(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Read true or false."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false", key)
        return value

    def whole(self, key: str, default: int | None = None) -> int | None:
        """Read a whole number."""
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{key} must be a whole number", key)
        return value

    def decimal(self, key: str) -> Decimal | None:
        """Read an exact decimal, as written; None if the key is missing."""
        value = self.raw(key)
        if value is None:
            return None
        try:
            if isinstance(value, bool):
                raise InvalidOperation
            number = Decimal(str(value))
        except InvalidOperation:
            raise self.error(f"{key} must be a number", key) from None
        if not number.is_finite():
            raise self.error(f"{key} must be a finite number", key)
        return number

    def mapping(self, key: str) -> Node:
        """Read a mapping; a missing one is empty."""
        value = self.raw(key)
        if value is None:
            return Node(Mapped(), self.file, self.line(key))
        if not isinstance(value, Mapped):
            raise self.error(f"{key} must be a mapping", key)
        return Node(value, self.file, self.line(key))

    def mappings(self, key: str) -> tuple[Node, ...]:
        """Read a list of mappings; a missing one is empty."""
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, Listed):
            raise self.error(f"{key} must be a list", key)
        nodes: list[Node] = []
        for index, item in enumerate(value):
            if not isinstance(item, Mapped):
                raise self.error(f"{key} must be a list of mappings", key)
            nodes.append(Node(item, self.file, value.lines[index]))
        return tuple(nodes)

    def done(self) -> None:
        """Raise MappingError if a key was never asked for: it would be silently ignored."""
        for key in self:
            if key not in self._read:
                raise self.error(f"unknown key {key!r}", key)


def load_yaml(path: Path, *, name: str | None = None) -> Node:
    """Load a YAML file whose top is a mapping; raises MappingError with file and line."""
    file = name or path.name
    try:
        top = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
        content = None if top is None else _built(top, file, 0)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise MappingError(f"not YAML: {error.problem}", file=file, line=line) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MappingError("can't be read as YAML text", file=file) from error
    if not isinstance(content, Mapped):
        raise MappingError("the file must hold a mapping", file=file, line=1)
    return Node(content, file)


def _built(node: yaml.Node, file: str, depth: int) -> Any:
    """Make a value of what was parsed; ``depth`` also ends an alias within its own anchor."""
    line = node.start_mark.line + 1
    if depth > _DEPTH:
        raise MappingError("nested too deeply", file=file, line=line)
    if isinstance(node, yaml.MappingNode):
        mapped = Mapped()
        for key_node, value_node in node.value:
            key, at = _key(key_node, file), key_node.start_mark.line + 1
            if key in mapped:
                raise MappingError(f"found duplicate key {key!r}", file=file, line=at)
            mapped[key] = _built(value_node, file, depth + 1)
            mapped.key_lines[key] = at
            mapped.value_lines[key] = value_node.start_mark.line + 1
        return mapped
    if isinstance(node, yaml.SequenceNode):
        listed = Listed()
        for entry in node.value:
            listed.append(_built(entry, file, depth + 1))
            listed.lines.append(entry.start_mark.line + 1)
        return listed
    return _scalar(node, file, line)


def _key(node: yaml.Node, file: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise MappingError("a key must be a text", file=file, line=node.start_mark.line + 1)
    return str(node.value)


def _scalar(node: yaml.Node, file: str, line: int) -> str | int | bool | Decimal | None:
    text = str(node.value)
    if node.tag == _TEXT:
        return text
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text.lower() == "true"
    try:
        if node.tag == _INT:
            # As in YAML, zeros in front of a decimal number mean nothing.
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if node.tag == _FLOAT:
            return Decimal(text.replace(".inf", "Infinity").replace(".nan", "NaN"))
    except (ValueError, InvalidOperation):
        pass
    raise MappingError(f"a value of an unknown kind ({node.tag})", file=file, line=line)
