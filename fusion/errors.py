"""Every way in which a fusion config, or what it is applied to, can be wrong.

FusionError
├── ConfigError              something about a config
│   ├── ConfigUnreadable     the file or directory cannot be read, or is not YAML
│   └── ConfigInvalid        a key is missing, unknown, or has a value that it must not have
├── PolicyMismatch           a policy and a model do not fit
│   ├── UnknownTask          a task or name that the model does not have
│   └── NoLatent             P(UP) or joint probabilities wanted from a model without a latent
├── InputInvalid             arrays handed to a policy do not fit each other, or are not finite
├── ForceError               a forced variant
│   ├── ForceRefused         the caller may not force variants
│   └── ForceUnknown         no such layer or variant
├── PhaseNeeded              a running experiment was changed in a way that moves users between variants
├── HistoryError             a version or state folder that cannot be used
└── RequestsInvalid          recorded requests that do not read

A message gives the thing, the value found and the value expected.
"""

from __future__ import annotations


class FusionError(Exception):
    """A fusion config, or what it is applied to, is not what it must be."""

    exit_code = 2

    def __init__(self, thing: str, *, found: object, expected: object) -> None:
        """Build the message `<thing>: got <found>, want <expected>`."""
        self.thing = thing
        self.found = found
        self.expected = expected
        super().__init__(f"{thing}: got {found}, want {expected}")


class ConfigError(FusionError):
    """Something about a fusion config, with the place in it.

    Attributes:
        file: the file's path as given, or None where no file is involved.
        line: line in the file, from 1, or None where the place is not known.
        key: dotted path of the key (`policies.feed.weights.like`), empty for the whole document.
    """

    def __init__(
        self, key: str, *, found: object, expected: object, file: str | None = None, line: int | None = None
    ) -> None:
        """Build the message `<file>:<line>: <key>: got <found>, want <expected>`."""
        self.file = file
        self.line = line
        self.key = key
        place = "" if file is None else f"{file}:{line}: " if line is not None else f"{file}: "
        super().__init__(f"{place}{key or 'document'}", found=found, expected=expected)


class ConfigUnreadable(ConfigError):
    """The file or directory cannot be read, or is not YAML."""


class ConfigInvalid(ConfigError):
    """A key is missing, unknown, or has a value that it must not have."""


class PolicyMismatch(FusionError):
    """A policy and a model do not fit."""


class UnknownTask(PolicyMismatch):
    """A policy names a task (or an expression a name) that the model does not have."""


class NoLatent(PolicyMismatch):
    """P(UP) or joint probabilities are wanted from a model without a latent."""


class InputInvalid(FusionError):
    """Arrays handed to a policy do not fit each other, or are not finite."""


class ForceError(FusionError):
    """A forced variant that cannot be had."""


class ForceRefused(ForceError):
    """The caller is neither privileged nor a listed test user."""


class ForceUnknown(ForceError):
    """No such layer or variant."""


class PhaseNeeded(ConfigError):
    """A running experiment was changed in a way that moves users between variants; it needs a new phase."""


class HistoryError(FusionError):
    """A version that is not in the history, or a state folder that cannot be used."""


class RequestsInvalid(FusionError):
    """Recorded requests that do not read."""
