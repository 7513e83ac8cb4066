# cython: language_level=3
"""The library of operators as a module of Python: which instructions they use.

ONNX Runtime loads the same file as a library of custom operators (`operators.c`).
"""

cdef extern from "kernels.h":
    int instructions_in_use()
    int use_instructions(int level)

_NAMES = ("portable", "avx512_vnni", "amx_int8")


def instructions() -> str:
    """Return the instruction set that the operators use."""
    return _NAMES[instructions_in_use()]


def use(name: str) -> None:
    """Use a lesser instruction set than the best one, for comparison.

    Raises:
        ValueError: there is no such set, or this processor lacks it.
    """
    if name not in _NAMES or use_instructions(_NAMES.index(name)) < 0:
        raise ValueError(f"instructions: found {name!r}, expected at most the processor's, {_NAMES}")
