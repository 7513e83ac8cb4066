# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The gradient of table rows read by number, added up in one pass, compiled."""

from libc.stdint cimport int64_t


def add_rows(float[:, ::1] table_VD not None, const int64_t[::1] rows_N not None,
             const float[:, ::1] values_ND not None):
    """Add each value to its row of a table.

    Args:
        table_VD: is added to.
        rows_N: which row each value belongs to.
        values_ND: the values.

    Raises:
        ValueError: arrays that do not fit each other, or a row beyond the table; rows before it are added.
    """
    cdef Py_ssize_t count = rows_N.shape[0], size = table_VD.shape[1], n, d
    cdef int64_t row
    cdef float* into
    cdef const float* value
    if values_ND.shape[0] != count or values_ND.shape[1] != size:
        raise ValueError(f"values: found [{values_ND.shape[0]}, {values_ND.shape[1]}], expected [{count}, {size}]")
    if not count or not size:
        return
    for n in range(count):
        row = rows_N[n]
        if not 0 <= row < table_VD.shape[0]:
            raise ValueError(f"rows: found {row}, expected below {table_VD.shape[0]}")
        into, value = &table_VD[row, 0], &values_ND[n, 0]
        for d in range(size):
            into[d] += value[d]
