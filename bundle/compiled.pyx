# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Compiled loops of the contract: hashed integers of columns and of one row, items' rows by id, whether outputs are finite."""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from libc.string cimport memchr, memcmp, memcpy, memset


cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef extern from *:
    """
    #if defined(__GNUC__)
    #define prefetch(address) __builtin_prefetch(address)
    #else
    #define prefetch(address) ((void) (address))
    #endif
    """
    void prefetch(const void* address) noexcept nogil


cdef enum:
    MOST_WORDS = 128  # of an id of 1,024 bytes
    SOUGHT_TOGETHER = 128
    NO_ROW = -1


cdef inline uint64_t mixed(uint64_t key) noexcept nogil:
    """Return a key mixed by the finaliser of SplitMix64."""
    key += <uint64_t> 0x9E3779B97F4A7C15
    key = (key ^ (key >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    key = (key ^ (key >> 27)) * <uint64_t> 0x94D049BB133111EB
    return key ^ (key >> 31)


def hash_columns(object columns not None, list plan not None, int32_t[:, :] codes_NC not None, int first_code):
    """Write the codes of features of hashed integers, each into its column; defaults where there is no value.

    Args:
        columns: feature → `Column`; absent ones have no value in any row.
        plan: of each feature its name, buckets, column of the codes, and default code.
        codes_NC: is written to.
        first_code: code of the first bucket.

    Returns:
        Rows without a value by feature, of features with any; and the features that are left, whose columns are not what
        is common: int64, in one piece, a value for each row (`encode.PartEncoder` takes them, or says what is wrong).

    Raises:
        ValueError: a plan that does not fit the codes.
    """
    cdef Py_ssize_t rows = codes_NC.shape[0], width = codes_NC.shape[1], row, place
    cdef const int64_t[::1] values_N
    cdef const unsigned char[::1] missing_N
    cdef uint64_t buckets
    cdef int32_t default
    cdef dict lacking = {}
    cdef list left = []
    cdef Py_ssize_t without
    for name, count, at, unknown in plan:
        buckets, place, default = count, at, unknown
        if not 0 <= place < width or buckets == 0:
            raise ValueError(f"found column {place} and {buckets} buckets, expected one of {width} columns and a bucket")
        column = columns.get(name)
        if column is None:
            for row in range(rows):
                codes_NC[row, place] = default
            if rows:
                lacking[name] = rows
            continue
        values = getattr(column, "values", None)
        if values is None or column.indices is not None:
            left.append(name)
            continue
        missing = column.missing
        try:
            values_N = values
            missing_N = None if missing is None else missing.view("u1")
        except (ValueError, TypeError):
            left.append(name)
            continue
        if values_N.shape[0] != rows or (missing is not None and missing_N.shape[0] != rows):
            left.append(name)
            continue
        for row in range(rows):
            codes_NC[row, place] = first_code + <int32_t> (mixed(<uint64_t> values_N[row]) % buckets)
        if missing is not None:
            without = 0
            for row in range(rows):
                if missing_N[row]:
                    codes_NC[row, place] = default
                    without += 1
            if without:
                lacking[name] = without
    return lacking, left


def hash_values(object values not None, list plan not None, int32_t[:, :] codes_1C not None, int first_code):
    """Write the codes of one row's features of hashed integers, as `hash_columns` does of Python's integers.

    Returns:
        1 for each feature without a value; None where a value is no integer of 64 bits.
    """
    cdef Py_ssize_t width = codes_1C.shape[1], place
    cdef long long key
    cdef int overflow
    cdef uint64_t buckets
    cdef dict lacking = {}
    if codes_1C.shape[0] != 1:
        raise ValueError(f"found {codes_1C.shape[0]} rows, expected 1")
    for name, count, at, default in plan:
        buckets, place = count, at
        if not 0 <= place < width or buckets == 0:
            raise ValueError(f"found column {place} and {buckets} buckets, expected one of {width} columns and a bucket")
        value = values.get(name)
        if value is None:
            codes_1C[0, place] = default
            lacking[name] = 1
            continue
        if type(value) is not int:
            return None
        key = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            return None
        codes_1C[0, place] = first_code + <int32_t> (mixed(<uint64_t> key) % buckets)
    return lacking


cdef struct Sought:
    const char* text
    Py_ssize_t size
    Py_ssize_t slot  # where the search begins; below 0 where nothing can be found


cdef inline bint is_id(const uint64_t* words, Py_ssize_t count, Sought sought) noexcept nogil:
    """Return whether the words hold a text, filled with zeros."""
    cdef const char* held = <const char*> words
    cdef Py_ssize_t at
    if memcmp(held, sought.text, sought.size) != 0:
        return False
    for at in range(sought.size, 8 * count):
        if held[at] != 0:
            return False
    return True


def find_rows(const int32_t[::1] index_S not None, const uint64_t[:, ::1] words_MW not None, object ids not None,
              int32_t[::1] found_N not None):
    """Write the row of each id, −1 where there is none: `items_index.find_rows` without an array per step.

    A table is larger than caches are: some ids at a time are hashed, and what the search will read is asked for ahead.

    Raises:
        ValueError: an index whose size is no power of two, words that no id can have, or not as many rows as ids.
    """
    cdef Py_ssize_t words = words_MW.shape[1], slots = index_S.shape[0], items = words_MW.shape[0]
    cdef Py_ssize_t begin, some, n, word, slot, steps
    cdef uint64_t[MOST_WORDS] wanted
    cdef uint64_t hashed
    cdef Sought[SOUGHT_TOGETHER] sought
    cdef int32_t row
    cdef int bits = 0
    cdef list texts = list(ids)  # held, so that their characters stay where they are
    while slots >> bits > 1:
        bits += 1
    if slots < 2 or slots != <Py_ssize_t> 1 << bits or not 0 < words <= MOST_WORDS or found_N.shape[0] != len(texts):
        raise ValueError(f"found {slots} slots, {words} words and {found_N.shape[0]} rows, expected a power of two of "
                         f"slots, 1 to {MOST_WORDS} words and {len(texts)} rows")
    for begin in range(0, len(texts), SOUGHT_TOGETHER):
        some = min(<Py_ssize_t> SOUGHT_TOGETHER, <Py_ssize_t> len(texts) - begin)
        for n in range(some):
            try:
                sought[n].text = PyUnicode_AsUTF8AndSize(texts[begin + n], &sought[n].size)
            except UnicodeEncodeError:  # a lone surrogate
                texts[begin + n] = texts[begin + n].encode("utf-8", "surrogatepass")
                sought[n].text, sought[n].size = texts[begin + n], len(texts[begin + n])
            sought[n].slot = -1
            if sought[n].size <= 8 * words and memchr(sought[n].text, 0, sought[n].size) == NULL:
                memset(wanted, 0, 8 * words)
                memcpy(wanted, sought[n].text, sought[n].size)
                hashed = <uint64_t> 0x9E3779B97F4A7C15
                for word in range(words):
                    hashed = (hashed ^ wanted[word]) * <uint64_t> 0xD6E8FEB86659FD93
                    hashed ^= hashed >> 32
                sought[n].slot = <Py_ssize_t> ((hashed * <uint64_t> 0xD6E8FEB86659FD93) >> (64 - bits))
                prefetch(&index_S[sought[n].slot])
        for n in range(some):
            found_N[begin + n] = NO_ROW
            if sought[n].slot >= 0:
                row = index_S[sought[n].slot]
                if 0 <= row < items:
                    prefetch(&words_MW[row, 0])
        for n in range(some):
            slot = sought[n].slot
            for steps in range(slots if slot >= 0 else 0):
                row = index_S[slot]
                if row < 0 or row >= items:
                    break
                if is_id(&words_MW[row, 0], words, sought[n]):
                    found_N[begin + n] = row
                    break
                slot = (slot + 1) & (slots - 1)


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
