"""Reads YAML with the line of every key, so that a mistake can be named by file and line."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from service.errors import MappingError


class Node:
    """A mapping of a YAML file that knows file and line of each key.

    Its readers raise MappingError, naming file and line, when a value is of another type.
    """

    def __init__(self, content: CommentedMap, file: str, line: int = 1) -> None:
        self._content = content
        self.file = file
        self.start = line
        self._read: set[str] = set()

    @property
    def content(self) -> CommentedMap:
        """Give the mapping as loaded, with line marks."""
        return self._content

    def __iter__(self) -> Iterator[str]:
        return iter(str(key) for key in self._content)

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def line(self, key: str | None = None) -> int:
        """Give the line of a key, or of the mapping itself."""
        if key is None or key not in self._content:
            return self.start
        try:
            return int(self._content.lc.key(key)[0]) + 1
        except (KeyError, TypeError, AttributeError):
            return self.start

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
        return str(value).strip()

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a list of texts; one text stands for a list of one; missing is empty."""
        value = self.raw(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return (str(value),)
        if not isinstance(value, CommentedSeq) or not all(isinstance(item, str) for item in value):
            raise self.error(f"{key} must be a list of texts", key)
        return tuple(str(item) for item in value)

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
        return int(value)

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
            return Node(CommentedMap(), self.file, self.line(key))
        if not isinstance(value, CommentedMap):
            raise self.error(f"{key} must be a mapping", key)
        return Node(value, self.file, self.line(key))

    def mappings(self, key: str) -> tuple[Node, ...]:
        """Read a list of mappings; a missing one is empty."""
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, CommentedSeq):
            raise self.error(f"{key} must be a list", key)
        nodes: list[Node] = []
        for index, item in enumerate(value):
            if not isinstance(item, CommentedMap):
                raise self.error(f"{key} must be a list of mappings", key)
            nodes.append(Node(item, self.file, int(value.lc.item(index)[0]) + 1))
        return tuple(nodes)

    def done(self) -> None:
        """Raise MappingError if a key was never asked for: it would be silently ignored."""
        for key in self:
            if key not in self._read:
                raise self.error(f"unknown key {key!r}", key)


def load_yaml(path: Path, *, name: str | None = None) -> Node:
    """Load a YAML file whose top is a mapping; raises MappingError with file and line."""
    file = name or path.name
    yaml = YAML(typ="rt", pure=True)
    yaml.allow_duplicate_keys = False
    try:
        content = yaml.load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise MappingError(f"not YAML: {error.problem}", file=file, line=line) from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise MappingError("can't be read as YAML text", file=file) from error
    if not isinstance(content, CommentedMap):
        raise MappingError("the file must hold a mapping", file=file, line=1)
    return Node(content, file)
