"""YAML text → plain data, with the file and line of every key.

Refuses what makes configs surprising: duplicate keys, keys that are not text, anchors and aliases, tags of
other languages, several documents in a file. Knows nothing of policies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from fusion.errors import ConfigInvalid, ConfigUnreadable

MAX_FILE_BYTES = 1 << 20
"""Largest config file that is read."""
MAX_FILES = 100
"""Most files read from a config directory."""
_MAX_DEPTH = 50

KeyPath = tuple[str | int, ...]


@dataclass
class Document:
    """Plain data and where each of its keys stands.

    Attributes:
        data: mappings, lists, text, numbers, booleans and None.
        places: key path → (file, line from 1).
        file: what to name where a key has no place of its own.
    """

    data: dict[str, Any]
    places: dict[KeyPath, tuple[str, int]] = field(default_factory=dict)
    file: str = "config"

    def where(self, path: KeyPath) -> tuple[str, int | None]:
        """Return file and line of the key, or of its nearest parent that has a place."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.file, None

    def error(self, path: KeyPath, *, found: object, expected: object) -> ConfigInvalid:
        """Return a ConfigInvalid that names the file, line and key."""
        file, line = self.where(path)
        return ConfigInvalid(dotted(path), found=found, expected=expected, file=file, line=line)


def dotted(path: KeyPath) -> str:
    """Return `layers[0].name` for ("layers", 0, "name")."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_files(path: Path) -> dict[str, bytes]:
    """Return name → bytes of a config file, or of every *.yaml / *.yml in a directory, in name order.

    Raises:
        ConfigUnreadable: nothing there, too many or too large files, or no permission.
    """
    try:
        if path.is_dir():
            files = sorted(
                entry
                for entry in path.iterdir()
                if entry.suffix in (".yaml", ".yml") and not entry.name.startswith(".")
            )
            if not files or len(files) > MAX_FILES:
                expected = f"1 to {MAX_FILES} *.yaml files"
                raise ConfigUnreadable("directory", found=f"{len(files)}", expected=expected, file=str(path))
        else:
            files = [path]
        return {str(file): _read_file(file) for file in files}
    except OSError as exc:
        thing = Path(exc.filename).name if exc.filename else path.name
        raise ConfigUnreadable(
            thing, found=exc.strerror, expected="a readable YAML file or directory", file=str(path)
        ) from exc


def _read_file(file: Path) -> bytes:
    with file.open("rb") as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        expected = f"at most {MAX_FILE_BYTES} bytes"
        raise ConfigUnreadable("size", found="a larger file", expected=expected, file=str(file))
    return data


def parse_yaml(data: bytes, file: str) -> Document:
    """Return the mapping in a YAML file with the line of every key.

    Raises:
        ConfigUnreadable: not UTF-8 or not YAML.
        ConfigInvalid: an empty file, a duplicate key, an alias, a key that is not text.
    """
    try:
        text = data.decode("utf-8")
        root = yaml.compose(text, Loader=_Loader)
    except UnicodeDecodeError as exc:
        raise ConfigUnreadable("encoding", found=f"byte {exc.start}", expected="UTF-8", file=file) from exc
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else None
        raise ConfigUnreadable("YAML", found=exc.problem, expected="valid YAML", file=file, line=line) from exc
    except yaml.YAMLError as exc:
        found = str(exc).splitlines()[0]
        raise ConfigUnreadable("YAML", found=found, expected="valid YAML", file=file) from exc
    if root is None:
        raise ConfigInvalid("", found="an empty file", expected="a mapping with 'policies'", file=file, line=1)
    document = Document({}, {}, file)
    value = _value(root, (), document)
    if not isinstance(value, dict):
        raise ConfigInvalid("", found=type(value).__name__, expected="a mapping", file=file, line=1)
    document.data = value
    return document


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases (a small file with nested aliases can grow without bound)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=f"alias *{event.anchor}; anchors and aliases are not supported",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


def _value(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    document.places.setdefault(path, (document.file, node.start_mark.line + 1))
    if len(path) > _MAX_DEPTH:
        raise document.error(path, found="deeper nesting", expected=f"at most {_MAX_DEPTH} levels")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*path, index), document) for index, child in enumerate(node.value)]
    return _scalar(node, path, document)


def _scalar(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    try:
        return SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError) as exc:
        found = getattr(exc, "problem", None) or str(exc)
        raise document.error(path, found=found, expected="text, a number, true, false or null") from exc


def _mapping(node: yaml.MappingNode, path: KeyPath, document: Document) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        here = (*path, str(key_node.value))
        key = _scalar(key_node, here, document) if isinstance(key_node, yaml.ScalarNode) else key_node.id
        if not isinstance(key, str) or not isinstance(key_node, yaml.ScalarNode):
            expected = "a key that is text (YAML reads on/off/yes/no and numbers as other types: quote it)"
            raise ConfigInvalid(
                dotted(path), found=f"{key!r} as a key", expected=expected, file=document.file, line=line
            )
        if key in result:
            expected = f"it once (line {document.places[here][1]})"
            raise ConfigInvalid(dotted(here), found="the key again", expected=expected, file=document.file, line=line)
        document.places[here] = (document.file, line)
        result[key] = _value(value_node, here, document)
    return result
