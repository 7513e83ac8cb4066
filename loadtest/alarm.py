"""A timer that wakes an event loop within microseconds; an event loop's own timers are rounded to milliseconds.

On Linux a timerfd; elsewhere the loop is polled, which costs a core.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_NONBLOCK = os.O_NONBLOCK
_ABSOLUTE = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Calls `wake` in the event loop when `time.monotonic_ns()` has reached the time set last."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Open the timer; `close` must be called."""
        self._loop = loop
        self._wake = wake
        self._at_ns = 0
        self._handle = -1
        self._closed = False
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._handle = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK)
            if self._handle < 0:
                raise OSError(ctypes.get_errno(), "timerfd_create")
            loop.add_reader(self._handle, self._ring)

    def set(self, at_ns: int) -> None:
        """Ring at that time of `time.monotonic_ns()`, or at once if it is past; replaces the earlier time."""
        self._at_ns = at_ns
        if self._handle < 0:
            self._loop.call_soon(self._poll)
            return
        at_ns = max(at_ns, 1)  # zero would disarm the timer
        value = _Timer(_Timespec(0, 0), _Timespec(at_ns // 1_000_000_000, at_ns % 1_000_000_000))
        if self._libc.timerfd_settime(self._handle, _ABSOLUTE, ctypes.byref(value), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Close the timer; it does not ring again."""
        self._closed = True
        if self._handle >= 0:
            self._loop.remove_reader(self._handle)
            os.close(self._handle)
            self._handle = -1

    def _ring(self) -> None:
        try:
            os.read(self._handle, 8)
        except BlockingIOError:
            return  # set again since it became readable
        self._wake()

    def _poll(self) -> None:
        if self._closed:
            return
        if time.monotonic_ns() >= self._at_ns:
            self._wake()
        else:
            self._loop.call_soon(self._poll)
