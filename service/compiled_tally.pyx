# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Counts, and a request's stages, compiled: no lock, no float object, no call of prometheus-client's.

Each number is a double in somebody's memory: that of a worker's file, which its supervisor reads at any time, or one of
its own, from which it is taken. The interpreter's lock guards them: nothing here lets go of it between reading a number
and writing it.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc

from time import perf_counter


@cython.final
cdef class Count:
    """A number that is raised or set in place."""

    cdef double[::1] place

    def __init__(self, double[::1] place not None):
        """Take the place of one double."""
        if place.shape[0] != 1:
            raise ValueError(f"place: found {place.shape[0]} numbers, expected 1")
        self.place = place

    def inc(self, double amount=1.0):
        """Add to it."""
        self.place[0] += amount

    def set(self, double value):
        """Let it be this."""
        self.place[0] = value

    def take(self):
        """Return it, and let it be 0."""
        cdef double total = self.place[0]
        self.place[0] = 0.0
        return total


@cython.final
cdef class Observations:
    """A histogram's sum and buckets, raised in place."""

    cdef list held
    cdef double* bounds
    cdef double** places
    cdef Py_ssize_t buckets

    def __cinit__(self, bounds_B, places):
        """Take the buckets' upper bounds, which rise, the last one being infinity, and the places of sum and buckets."""
        cdef Py_ssize_t at
        cdef double[::1] place
        self.held = list(places)  # so that the memory stays
        self.buckets = len(bounds_B)
        if self.buckets == 0 or bounds_B[self.buckets - 1] != float("inf"):
            raise ValueError(f"bounds: found {list(bounds_B)}, expected the last one to be infinity")
        if len(self.held) != self.buckets + 1:
            raise ValueError(f"places: found {len(self.held)}, expected {self.buckets + 1}")
        self.bounds = <double*> PyMem_Malloc(self.buckets * sizeof(double))
        self.places = <double**> PyMem_Malloc((self.buckets + 1) * sizeof(double*))
        if self.bounds == NULL or self.places == NULL:
            raise MemoryError
        for at in range(self.buckets):
            self.bounds[at] = bounds_B[at]
        for at in range(self.buckets + 1):
            place = self.held[at]
            if place.shape[0] != 1:
                raise ValueError(f"place: found {place.shape[0]} numbers, expected 1")
            self.places[at] = &place[0]

    def __dealloc__(self):
        PyMem_Free(self.bounds)
        PyMem_Free(self.places)

    def observe(self, double amount):
        """Add one observation."""
        self.add(amount)

    cdef void add(self, double amount) noexcept:
        cdef Py_ssize_t bucket = 0
        while bucket < self.buckets - 1 and not amount <= self.bounds[bucket]:
            bucket += 1
        self.places[0][0] += amount
        self.places[1 + bucket][0] += 1.0

    def take(self):
        """Return sum and buckets, and let them be 0."""
        cdef Py_ssize_t at
        taken = [self.places[at][0] for at in range(self.buckets + 1)]
        for at in range(self.buckets + 1):
            self.places[at][0] = 0.0
        return taken


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
