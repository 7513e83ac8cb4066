"""The whole config: what a tuner writes, checked when it is read.

`load_config` is the one way in. A config's version is the hash of what it says, not of how it is written:
comments and the division into files do not change it. Knows nothing of models or of arrays.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError

from fusion.complaints import complaint, path_of
from fusion.crosscheck import cross_check
from fusion.document import Document, KeyPath, parse_yaml, read_files
from fusion.errors import ConfigInvalid
from fusion.layers import Holdout, Layer, Name
from fusion.policies import Policy
from fusion.rules import Model, Text


class FusionConfig(Model):
    """Everything that decides how the feed is ordered.

    Attributes:
        format: version of this file format.
        default: the policy of users who are in no experiment that names another one.
        negative_tasks: tasks that are to be avoided; only they may have negative weights.
        policies: name → policy.
        layers: experiments.
        holdout: users kept out of all experiments.
        test_users: ids that may ask for a variant without the admin key.
    """

    format: Literal[1] = 1
    default: Name
    negative_tasks: tuple[Text, ...] = ()
    policies: Annotated[dict[Name, Policy], Field(min_length=1, max_length=100)]
    layers: Annotated[tuple[Layer, ...], Field(max_length=20)] = ()
    holdout: Holdout = Holdout()
    test_users: tuple[Text, ...] = ()

    _document: Document = PrivateAttr(default_factory=lambda: Document({}))

    @cached_property
    def version(self) -> str:
        """The content hash `sha256:<64 hex digits>`: equal for configs that say the same."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def error(self, path: KeyPath, *, found: object, expected: object) -> ConfigInvalid:
        """Return a ConfigInvalid that names the file and line of the key."""
        return self._document.error(path, found=found, expected=expected)


def load_config(path: Path) -> FusionConfig:
    """Return the config in a YAML file, or in all *.yaml files of a directory taken together.

    Raises:
        ConfigUnreadable: cannot be read or is not YAML.
        ConfigInvalid: the first thing wrong in it: file, line, key, found, expected.
    """
    return parse_config(read_files(path))


def parse_config(files: dict[str, bytes]) -> FusionConfig:
    """Return the config in the files' contents (name → bytes); see `load_config`."""
    document = _merge([parse_yaml(data, name) for name, data in files.items()])
    return build_config(document)


def build_config(document: Document) -> FusionConfig:
    """Return the config that plain data says.

    Raises:
        ConfigInvalid: the first thing wrong in it.
    """
    try:
        config = FusionConfig.model_validate(document.data)
    except ValidationError as exc:
        raise config_error(document, exc) from None
    config._document = document
    cross_check(config)
    return config


def config_error(document: Document, exc: ValidationError) -> ConfigInvalid:
    """Return pydantic's first complaint as a ConfigInvalid with file, line and key."""
    first = exc.errors(include_url=False)[0]
    path = path_of(first, document.data)
    more = f" (and {exc.error_count() - 1} more)" if exc.error_count() > 1 else ""
    found, expected = complaint(first, FusionConfig.model_json_schema(), document.data, path)
    return document.error(path, found=found, expected=expected + more)


def _merge(documents: list[Document]) -> Document:
    """Return one document: policies are joined, lists appended, everything else said once."""
    if len(documents) == 1:
        return documents[0]
    merged = Document({}, {}, str(Path(documents[0].file).parent))
    for document in documents:
        shifts: dict[str, int] = {}
        for key, value in document.data.items():
            _merge_key(merged, document, key, value, shifts)
        for path, place in document.places.items():
            if len(path) > 1 and path[0] in shifts and isinstance(path[1], int):
                path = (path[0], path[1] + shifts[str(path[0])], *path[2:])
            merged.places.setdefault(path, place)
    return merged


def _merge_key(merged: Document, document: Document, key: str, value: Any, shifts: dict[str, int]) -> None:
    known = merged.data.get(key)
    if known is None:
        merged.data[key] = dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
    elif isinstance(known, list) and isinstance(value, list):
        shifts[key] = len(known)
        known.extend(value)
    elif key == "policies" and isinstance(known, dict) and isinstance(value, dict):
        for name, policy in value.items():
            if name in known:
                file, line = merged.where((key, name))
                raise document.error((key, name), found="the policy again", expected=f"it once ({file}:{line})")
            known[name] = policy
    else:
        file, line = merged.where((key,))
        raise document.error((key,), found="the key again", expected=f"it once ({file}:{line})")


def json_schema() -> str:
    """Return the JSON Schema of the config, for editors."""
    return json.dumps(FusionConfig.model_json_schema(), indent=1, sort_keys=True) + "\n"
