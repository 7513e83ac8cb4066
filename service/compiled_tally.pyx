# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Counts that only rise until they are taken, and a request's stages, compiled: no lock, no float object, no call.

The interpreter's lock guards them: nothing here lets go of it between reading a number and writing it.
"""

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc

from time import perf_counter


@cython.final
cdef class Count:
    """What a counter rises by."""

    cdef double total

    def inc(self, double amount=1.0):
        """Add to it."""
        self.total += amount

    def take(self):
        """Return what it has risen by since it was last taken."""
        cdef double total = self.total
        self.total = 0.0
        return total


@cython.final
cdef class Observations:
    """What a histogram's sum and buckets rise by."""

    cdef double* bounds_B
    cdef double* counts_B
    cdef Py_ssize_t buckets
    cdef double total
    cdef bint is_empty

    def __cinit__(self, bounds_B):
        """Take the buckets' upper bounds, which rise, the last one being infinity."""
        cdef Py_ssize_t bucket
        self.buckets = len(bounds_B)
        if self.buckets == 0 or bounds_B[self.buckets - 1] != float("inf"):
            raise ValueError(f"bounds: found {list(bounds_B)}, expected the last one to be infinity")
        self.bounds_B = <double*> PyMem_Malloc(self.buckets * sizeof(double))
        self.counts_B = <double*> PyMem_Calloc(self.buckets, sizeof(double))
        if self.bounds_B == NULL or self.counts_B == NULL:
            raise MemoryError
        for bucket in range(self.buckets):
            self.bounds_B[bucket] = bounds_B[bucket]
        self.is_empty = True

    def __dealloc__(self):
        PyMem_Free(self.bounds_B)
        PyMem_Free(self.counts_B)

    def observe(self, double amount):
        """Add one observation."""
        self.add(amount)

    cdef void add(self, double amount) noexcept:
        cdef Py_ssize_t bucket = 0
        while bucket < self.buckets - 1 and not amount <= self.bounds_B[bucket]:
            bucket += 1
        self.counts_B[bucket] += 1.0
        self.total += amount
        self.is_empty = False

    def take(self):
        """Return what the sum and each bucket have risen by since they were last taken; None where by nothing."""
        cdef Py_ssize_t bucket
        cdef double total = self.total
        if self.is_empty:
            return None
        counts = [self.counts_B[bucket] for bucket in range(self.buckets)]
        for bucket in range(self.buckets):
            self.counts_B[bucket] = 0.0
        self.total, self.is_empty = 0.0, True
        return total, counts


@cython.final
cdef class Stage:
    """A stage under the clock: a `with` block's start and end are noted, and its seconds observed."""

    cdef Observations seconds
    cdef list stages
    cdef str name
    cdef object start

    def __init__(self, str name not None, list stages not None, Observations seconds not None):
        """Note the stage in `stages` and its seconds in `seconds`."""
        self.name, self.stages, self.seconds = name, stages, seconds

    def __enter__(self):
        """Start the clock."""
        self.start = perf_counter()

    def __exit__(self, kind, exc, at):
        """Stop it."""
        end = perf_counter()
        self.stages.append((self.name, self.start, end))
        self.seconds.add(<double> end - <double> self.start)
