"""Every way in which a simulation can be refused.

SimulatorError
├── ScenarioUnknown     no scenario of that name
├── ScenarioInvalid     a scenario file does not parse, or asks for what cannot be
├── SizeInvalid         a number of impressions that cannot be simulated
├── OutputExists        the output folder is there already
├── OutputFailed        the output cannot be written (disk full, no permission)
└── TruthInvalid        a simulation folder that does not hold a readable truth
"""

from __future__ import annotations

from bundle.errors import Refused


class SimulatorError(Refused):
    """A simulation cannot be run, or cannot be read."""


class ScenarioUnknown(SimulatorError):
    """No scenario of that name."""


class ScenarioInvalid(SimulatorError):
    """A scenario file does not parse, or asks for rates that its effects cannot give."""


class SizeInvalid(SimulatorError):
    """A number of impressions that cannot be simulated."""


class OutputExists(SimulatorError):
    """The output folder is there already."""


class OutputFailed(SimulatorError):
    """The output cannot be written (disk full, no permission)."""


class TruthInvalid(SimulatorError):
    """A simulation folder that does not hold a readable truth."""
