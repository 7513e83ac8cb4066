# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The weighted sum, from a model's outputs to scores in one pass, and the order of scores, compiled: as `formulas`, to the bit."""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np


cdef struct Term:
    Py_ssize_t column  # of the task, in p or in p_joint
    bint is_joint
    double weight


@cython.final
cdef class WeightedSum:
    """One policy's sum: terms are added one by one, in their order, then P(UP)'s."""

    cdef Term* terms
    cdef Py_ssize_t count, tasks
    cdef bint reads_joint, reads_p_up, squeezes
    cdef double p_up, negative, slope, below, ceiling

    def __init__(self, Py_ssize_t tasks, columns, joint, weights, p_up, squeeze):
        """Take the model's number of tasks and a term's column, whether it is joint, and weight each.

        Args:
            tasks: of the model.
            columns: of the tasks, in p and p_joint.
            joint: whether P(task, UP) is read rather than P(task).
            weights: one per column.
            p_up: P(UP)'s weight, or None.
            squeeze: what `formulas.squeeze_negative` takes: (negative, weight, ceiling); None for sums as they are.
        """
        if not columns and p_up is None:
            raise ValueError("terms: found none, expected one")
        self.count, self.tasks = len(columns), tasks
        self.terms = <Term*> PyMem_Malloc(max(1, self.count) * sizeof(Term))
        if self.terms == NULL:
            raise MemoryError
        for term, (column, is_joint, weight) in enumerate(zip(columns, joint, weights, strict=True)):
            if not 0 <= column < tasks:
                raise ValueError(f"column: found {column}, expected below {tasks}")
            self.terms[term] = Term(column, is_joint, weight)
        self.reads_joint, self.reads_p_up, self.squeezes = any(joint), p_up is not None, squeeze is not None
        self.p_up = p_up or 0.0
        if squeeze is not None:
            self.negative, weight, self.ceiling = squeeze
            self.slope, self.below = self.ceiling / weight, np.nextafter(self.ceiling, 0.0)

    def __dealloc__(self):
        PyMem_Free(self.terms)

    def scores(self, const float[:, :] p_NT not None, const float[:, :] p_joint_NT, const float[:] p_up_N):
        """Return the scores, float64 [N]; None where one is not finite.

        Raises:
            ValueError: arrays that do not fit each other or the policy.
        """
        cdef Py_ssize_t rows = p_NT.shape[0], row, term
        cdef double total, addend
        cdef double[::1] score_N
        cdef Term* terms = self.terms
        if p_NT.shape[1] != self.tasks:
            raise ValueError(f"p: found {p_NT.shape[1]} tasks, expected {self.tasks}")
        if self.reads_joint and (
            p_joint_NT is None or p_joint_NT.shape[0] != rows or p_joint_NT.shape[1] != self.tasks
        ):
            raise ValueError("p_joint: found another shape than p's, or none")
        if self.reads_p_up and (p_up_N is None or p_up_N.shape[0] != rows):
            raise ValueError("p_up: found another number of rows than p's, or none")
        scores = np.empty(rows)
        score_N = scores
        for row in range(rows):
            total = 0.0
            # the first term is not added to 0, which would turn -0 into 0
            for term in range(self.count):
                if terms[term].is_joint:
                    addend = <double> p_joint_NT[row, terms[term].column] * terms[term].weight
                else:
                    addend = <double> p_NT[row, terms[term].column] * terms[term].weight
                total = total + addend if term else addend
            if self.reads_p_up:
                addend = <double> p_up_N[row] * self.p_up
                total = total + addend if self.count else addend
            if not isfinite(total):
                return None
            if self.squeezes:
                if total < 0:
                    total = max(total + self.negative, 0.0) * self.slope
                    total = min(total, self.below)
                else:
                    total += self.ceiling
            score_N[row] = total
        return scores


cdef struct Keyed:
    uint64_t key  # rises as the score falls
    int64_t row


cdef enum:
    DIGITS = 8  # of a key
    VALUES = 256  # of a digit


def order_by_score(const double[::1] score_N not None):
    """Return what `formulas.order_by_score` does, by a radix sort; None where a score is NaN, or they are 2^32.

    Some 500 scores take a fifth of the time of numpy's stable sort.
    """
    cdef Py_ssize_t rows = score_N.shape[0], row, place
    cdef uint32_t[DIGITS][VALUES] counts  # of the rows with a digit; then where the next of them goes
    cdef uint32_t begin, size
    cdef int digit, value
    cdef double falling
    cdef uint64_t bits
    cdef Keyed* keyed
    cdef Keyed* other
    cdef Keyed* held
    if rows >> 32:
        return None
    order_N = np.empty(rows, np.int64)
    cdef int64_t[::1] order = order_N
    if rows == 0:
        return order_N
    held = keyed = <Keyed*> PyMem_Malloc(2 * rows * sizeof(Keyed))
    if keyed == NULL:
        raise MemoryError
    try:
        other = keyed + rows
        memset(counts, 0, sizeof(counts))
        for row in range(rows):
            falling = 0.0 - score_N[row]  # of both zeros this makes the same one
            if falling != falling:
                return None
            memcpy(&bits, &falling, sizeof(bits))
            bits ^= <uint64_t> (-<int64_t> (bits >> 63)) | <uint64_t> 0x8000000000000000
            keyed[row] = Keyed(bits, row)
            for digit in range(DIGITS):
                counts[digit][(bits >> (8 * digit)) & 255] += 1
        for digit in range(DIGITS):
            if counts[digit][(keyed[0].key >> (8 * digit)) & 255] == rows:
                continue  # all the same
            begin = 0
            for value in range(VALUES):
                size = counts[digit][value]
                counts[digit][value] = begin
                begin += size
            for row in range(rows):
                value = (keyed[row].key >> (8 * digit)) & 255
                place = counts[digit][value]
                counts[digit][value] = place + 1
                other[place] = keyed[row]
            keyed, other = other, keyed
        for row in range(rows):
            order[row] = keyed[row].row
        return order_N
    finally:
        PyMem_Free(held)
