# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The loop of `encode.hash_codes` over the integers of several features, compiled; whether a model's outputs are finite."""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


def hash_into(list values_HN not None, list buckets_H not None, list columns_H not None,
              int32_t[:, :] codes_NC not None, int first_code):
    """Write the codes of integers of several features into their columns.

    Args:
        values_HN: a feature's integers each, int64 [N].
        buckets_H: how many buckets each has.
        columns_H: which column each takes.
        codes_NC: is written to.
        first_code: code of the first bucket.

    Raises:
        ValueError: arrays that do not fit each other.
    """
    cdef Py_ssize_t rows = codes_NC.shape[0], columns = codes_NC.shape[1], row, column
    cdef const int64_t[::1] values_N
    cdef uint64_t key, buckets
    for values, count, place in zip(values_HN, buckets_H, columns_H, strict=True):
        values_N, buckets, column = values, count, place
        if values_N.shape[0] != rows or not 0 <= column < columns or buckets == 0:
            raise ValueError(f"found {values_N.shape[0]} values for column {column} of {buckets} buckets, expected "
                             f"{rows} for one of {columns} columns, and a bucket")
        for row in range(rows):
            key = <uint64_t> values_N[row] + <uint64_t> 0x9E3779B97F4A7C15
            key = (key ^ (key >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
            key = (key ^ (key >> 27)) * <uint64_t> 0x94D049BB133111EB
            key ^= key >> 31
            codes_NC[row, column] = first_code + <int32_t> (key % buckets)


def all_finite(object arrays not None):
    """Return whether all numbers of float32 arrays, each in one piece, are finite.

    Raises:
        BufferError, ValueError: an array is not in one piece, or not of float32.
    """
    cdef Py_buffer view
    cdef Py_ssize_t i, count
    cdef const uint32_t* bits
    cdef uint32_t worst = 0
    for array in arrays:
        PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        try:
            if view.itemsize != 4 or view.format[0] != b"f":
                raise ValueError(f"found numbers of format {view.format}, expected float32")
            bits, count = <const uint32_t*> view.buf, view.len // 4
            for i in range(count):
                worst = max(worst, bits[i] & <uint32_t> 0x7FFFFFFF)
        finally:
            PyBuffer_Release(&view)
    return worst < <uint32_t> 0x7F800000
