"""Every way in which a load test can be refused.

LoadtestError
├── TargetInvalid      a URL, a header or a connection limit that cannot be used
├── RequestsInvalid    a file of request bodies that does not read
├── PlanInvalid        a rate, duration or number of rounds that cannot be driven
├── Unreachable        nothing listens at the target
├── BaselineInvalid    a baseline file that does not read, or was measured otherwise
├── KitInvalid         a folder that is no kit for comparing servers
├── PeerUnknown        a name that is no peer
├── ScenarioUnknown    a name that is no scenario
└── ServerFailed       a server that does not start, or does not answer
    └── AnswerWrong    one that answers something else than the model gives
"""

from __future__ import annotations


class LoadtestError(Exception):
    """A load test cannot be run."""

    exit_code = 2

    def __init__(self, thing: str, *, found: object, expected: object) -> None:
        """Build the message `<thing>: got <found>, want <expected>`."""
        self.thing = thing
        self.found = found
        self.expected = expected
        super().__init__(f"{thing}: got {found}, want {expected}")


class TargetInvalid(LoadtestError):
    """A URL, a header or a connection limit that cannot be used."""


class RequestsInvalid(LoadtestError):
    """A file of request bodies that does not read."""


class PlanInvalid(LoadtestError):
    """A rate, duration or number of rounds that cannot be driven."""


class Unreachable(LoadtestError):
    """Nothing listens at the target."""


class BaselineInvalid(LoadtestError):
    """A baseline file that does not read, or was measured otherwise."""


class KitInvalid(LoadtestError):
    """A folder that is no kit for comparing servers."""


class PeerUnknown(LoadtestError):
    """A name that is no peer."""


class ScenarioUnknown(LoadtestError):
    """A name that is no scenario."""


class ServerFailed(LoadtestError):
    """A server that does not start, or does not answer."""


class AnswerWrong(ServerFailed):
    """A server that answers something else than the model gives."""
