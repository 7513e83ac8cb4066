"""Every way in which a simulation can be refused.

SimulatorError
├── ScenarioUnknown     no scenario of that name
├── ScenarioInvalid     a scenario file does not parse, or asks for what cannot be
├── SizeInvalid         a number of impressions that cannot be simulated
├── OutputExists        the output folder is there already
└── TruthInvalid        a simulation folder that does not hold a readable truth
"""

from __future__ import annotations


class SimulatorError(Exception):
    """A simulation cannot be run, or cannot be read."""

    exit_code = 2

    def __init__(self, thing: str, *, found: object, expected: object) -> None:
        """Build the message `<thing>: got <found>, want <expected>`."""
        self.thing = thing
        self.found = found
        self.expected = expected
        super().__init__(f"{thing}: got {found}, want {expected}")


class ScenarioUnknown(SimulatorError):
    """No scenario of that name."""


class ScenarioInvalid(SimulatorError):
    """A scenario file does not parse, or asks for rates that its effects cannot give."""


class SizeInvalid(SimulatorError):
    """A number of impressions that cannot be simulated."""


class OutputExists(SimulatorError):
    """The output folder is there already."""


class TruthInvalid(SimulatorError):
    """A simulation folder that does not hold a readable truth."""
