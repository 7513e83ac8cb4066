# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Arrow IPC streams of one plain batch read to arrays, and the ids of an Arrow answer joined, compiled.

They do what `arrow` does by pyarrow, for what is common, and return None for all else: several batches, dictionaries,
lists, whatever is wrong. Then pyarrow reads it, or says what is wrong. pyarrow makes an object per message, field,
array, type and buffer, which a request of any size pays for.

Every read of a stream is checked to be inside it (`_Flat.check`, `_Batch.buffer`).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy

import numpy as np

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef enum:  # of Arrow's Message.fbs and Schema.fbs
    CONTINUATION = 0xFFFFFFFF
    SCHEMA = 1
    RECORD_BATCH = 3
    V4 = 3
    V5 = 4
    LITTLE_ENDIAN = 0
    INT = 2
    FLOATING_POINT = 3
    UTF8 = 5
    LARGE_UTF8 = 20
    SINGLE = 1
    DOUBLE = 2

cdef enum:  # which field of a table of those files is which
    MESSAGE_VERSION = 0
    MESSAGE_KIND = 1
    MESSAGE_HEADER = 2
    MESSAGE_BODY_LENGTH = 3
    SCHEMA_ENDIANNESS = 0
    SCHEMA_FIELDS = 1
    SCHEMA_METADATA = 2
    SCHEMA_FEATURES = 3
    FIELD_NAME = 0
    FIELD_KIND = 2
    FIELD_TYPE = 3
    FIELD_DICTIONARY = 4
    FIELD_CHILDREN = 5
    KEY = 0
    VALUE = 1
    INT_BITS = 0
    INT_SIGNED = 1
    FLOAT_PRECISION = 0
    BATCH_LENGTH = 0
    BATCH_NODES = 1
    BATCH_BUFFERS = 2
    BATCH_COMPRESSION = 3
    BATCH_VARIADIC = 4

cdef enum Kind:
    INTEGER
    NUMBER
    STRING


class _Unread(Exception):
    """The stream is broken, or not of the usual kind."""


@cython.final
cdef class _Flat:
    """A flatbuffer of some bytes of a stream. Places are counted from its begin; 0, where its root stands, is none."""

    cdef const char* at
    cdef Py_ssize_t size

    cdef inline int check(self, int64_t place, int64_t size) except -1:
        """Check that so many bytes from a place on are inside."""
        if not (0 <= place <= self.size and 0 <= size <= self.size - place):
            raise _Unread
        return 0

    cdef uint32_t u32(self, int64_t place) except? 0xFFFFFFFF:
        cdef uint32_t value
        self.check(place, 4)
        memcpy(&value, self.at + place, 4)
        return value

    cdef int64_t i64(self, int64_t place) except? -1:
        cdef int64_t value
        self.check(place, 8)
        memcpy(&value, self.at + place, 8)
        return value

    cdef int64_t target(self, int64_t place) except -1:
        """Return where the table, vector or text is that is pointed to."""
        cdef int64_t there = place + self.u32(place)
        self.check(there, 4)
        return there

    cdef int64_t field(self, int64_t table, int index) except -1:
        """Return where a table's field stands; 0 where it has none."""
        cdef int64_t vtable = table - <int32_t> self.u32(table)
        cdef uint16_t size, offset
        self.check(vtable, 4)
        memcpy(&size, self.at + vtable, 2)
        if 6 + 2 * index > size:
            return 0
        self.check(vtable, 6 + 2 * index)
        memcpy(&offset, self.at + vtable + 4 + 2 * index, 2)
        if offset == 0:
            return 0
        self.check(table + offset, 1)
        return table + offset

    cdef int64_t child(self, int64_t table, int index) except -1:
        """Return where what a table's field points to stands; 0 where there is none."""
        cdef int64_t place = self.field(table, index)
        return self.target(place) if place else 0

    cdef int64_t needed(self, int64_t table, int index) except -1:
        """Return where what a table's field points to stands."""
        cdef int64_t there = self.child(table, index)
        if there == 0:
            raise _Unread
        return there

    cdef int64_t small(self, int64_t table, int index, int width, int64_t default) except? -1:
        """Return a field of one, two or four bytes."""
        cdef int64_t place = self.field(table, index)
        cdef int16_t two
        if place == 0:
            return default
        self.check(place, width)
        if width == 1:
            return <uint8_t> self.at[place]
        if width == 4:
            return <int32_t> self.u32(place)
        memcpy(&two, self.at + place, 2)
        return two

    cdef int64_t count(self, int64_t vector, int width) except -1:
        """Return how many elements of so many bytes a vector has; 0 where there is none."""
        cdef int64_t elements
        if vector == 0:
            return 0
        elements = self.u32(vector)
        self.check(vector + 4, elements * width)
        return elements

    cdef bytes text(self, int64_t vector):
        """Return the bytes of a text."""
        return PyBytes_FromStringAndSize(self.at + vector + 4, self.count(vector, 1))

    cdef bint is_text(self, int64_t vector, bytes text) except -1:
        """Return whether a text is this one."""
        cdef int64_t size = self.count(vector, 1)
        return size == len(text) and memcmp(self.at + vector + 4, PyBytes_AS_STRING(text), size) == 0


@cython.final
cdef class _Messages:
    """The messages of a stream, one after another."""

    cdef bytes body
    cdef Py_ssize_t place

    cdef _Flat next(self, int kind, int64_t* body_length):
        """Return the next message's flatbuffer, which must be of a kind; its body, if any, follows in the stream."""
        cdef _Flat whole = _Flat()
        cdef _Flat metadata = _Flat()
        cdef int64_t root, found, length
        whole.at, whole.size = PyBytes_AS_STRING(self.body), len(self.body)
        if whole.u32(self.place) != CONTINUATION:
            raise _Unread
        metadata.size = whole.u32(self.place + 4)
        whole.check(self.place + 8, metadata.size)
        metadata.at = whole.at + self.place + 8
        self.place += 8 + metadata.size
        root = metadata.target(0)
        found = metadata.field(root, MESSAGE_BODY_LENGTH)
        length = metadata.i64(found) if found else 0
        whole.check(self.place, length)
        if not V4 <= metadata.small(root, MESSAGE_VERSION, 2, 0) <= V5:
            raise _Unread
        if metadata.small(root, MESSAGE_KIND, 1, 0) != kind:
            raise _Unread
        body_length[0] = length
        return metadata

    cdef int end(self) except -1:
        """Check that nothing comes any more but the mark of the end."""
        if self.body[self.place :] not in (b"", b"\xff\xff\xff\xff\0\0\0\0"):
            raise _Unread
        return 0


cdef struct Layout:
    Kind kind
    int width  # bytes of a number, or of an offset into texts
    bint is_signed


cdef Layout layout_of(_Flat schema, int64_t field) except *:
    """Return how a column is laid out."""
    cdef int64_t kind = schema.small(field, FIELD_KIND, 1, 0), type_ = schema.needed(field, FIELD_TYPE), bits
    cdef Layout layout
    if schema.field(field, FIELD_DICTIONARY) or schema.count(schema.child(field, FIELD_CHILDREN), 4):
        raise _Unread
    layout.is_signed = True
    if kind == INT:
        bits = schema.small(type_, INT_BITS, 4, 0)
        layout.kind = INTEGER
        layout.is_signed = schema.small(type_, INT_SIGNED, 1, 0) != 0
        if bits not in (8, 16, 32, 64) or (bits == 64 and not layout.is_signed):
            raise _Unread
        layout.width = <int> bits // 8
    elif kind == FLOATING_POINT:
        bits = schema.small(type_, FLOAT_PRECISION, 2, 0)
        layout.kind = NUMBER
        if bits != SINGLE and bits != DOUBLE:
            raise _Unread
        layout.width = 4 if bits == SINGLE else 8
    elif kind == UTF8 or kind == LARGE_UTF8:
        layout.kind = STRING
        layout.width = 4 if kind == UTF8 else 8
    else:
        raise _Unread
    return layout


@cython.final
cdef class _Batch:
    """The columns of a batch, taken one after another."""

    cdef _Flat metadata
    cdef const char* body
    cdef int64_t body_length, rows, node, nodes, next_buffer, buffers
    cdef int64_t unspent  # bytes that texts may still take: all of a stream's, since more are only in texts that share

    cdef int begin(self, _Messages messages) except -1:
        """Take the next message's head; the messages go on behind its body."""
        cdef int64_t root, place, vector
        self.metadata = messages.next(RECORD_BATCH, &self.body_length)
        self.body = PyBytes_AS_STRING(messages.body) + messages.place
        messages.place += self.body_length
        root = self.metadata.needed(self.metadata.target(0), MESSAGE_HEADER)
        if self.metadata.field(root, BATCH_COMPRESSION) or self.metadata.field(root, BATCH_VARIADIC):
            raise _Unread
        place = self.metadata.field(root, BATCH_LENGTH)
        self.rows = self.metadata.i64(place) if place else 0
        vector = self.metadata.child(root, BATCH_NODES)
        self.node, self.nodes = vector + 4, self.metadata.count(vector, 16)
        vector = self.metadata.child(root, BATCH_BUFFERS)
        self.next_buffer, self.buffers = vector + 4, self.metadata.count(vector, 16)
        self.unspent = len(messages.body)
        return 0

    cdef inline int spend(self, int64_t size) except -1:
        """Note that a text has so many bytes."""
        self.unspent -= size
        if self.unspent < 0:
            raise _Unread
        return 0

    cdef const char* buffer(self, int64_t* length) except NULL:
        """Return the next buffer, and how long it is."""
        cdef int64_t offset
        if self.buffers == 0:
            raise _Unread
        offset, length[0] = self.metadata.i64(self.next_buffer), self.metadata.i64(self.next_buffer + 8)
        if offset % 8 or not (0 <= offset <= self.body_length and 0 <= length[0] <= self.body_length - offset):
            raise _Unread
        self.next_buffer += 16
        self.buffers -= 1
        return self.body + offset

    cdef int missing(self, uint8_t* missing_N) except -1:
        """Begin a column: note which of its values are missing; return whether any is."""
        cdef int64_t nulls, found = 0, length = 0, row
        cdef const char* bits
        if self.nodes == 0 or self.metadata.i64(self.node) != self.rows:
            raise _Unread
        nulls = self.metadata.i64(self.node + 8)
        self.node += 16
        self.nodes -= 1
        bits = self.buffer(&length)
        if length:
            if length < (self.rows + 7) // 8:
                raise _Unread
            for row in range(self.rows):
                missing_N[row] = not (bits[row >> 3] >> (row & 7)) & 1
                found += missing_N[row]
        if found != nulls:
            raise _Unread
        return found > 0

    cdef int numbers(self, Layout layout, bint any_missing, const uint8_t* missing_N, int64_t* values_N) except -1:
        """Take a column of numbers: integers as such, others as doubles in their place; a missing one is 0."""
        cdef int64_t length = 0, row
        cdef const char* data = self.buffer(&length)
        cdef double* doubles_N = <double*> values_N
        if length // layout.width < self.rows:
            raise _Unread
        if layout.width == 8:  # nothing to convert
            memcpy(values_N, data, 8 * self.rows)
        elif layout.kind == NUMBER:
            for row in range(self.rows):
                doubles_N[row] = single(data + 4 * row)
        else:
            for row in range(self.rows):
                values_N[row] = whole_number(data + layout.width * row, layout)
        if any_missing:
            for row in range(self.rows):
                if missing_N[row]:
                    values_N[row] = 0
        return 0

    cdef list texts(self, Layout layout, bint any_missing, const uint8_t* missing_N, Py_ssize_t* longest):
        """Take a column of texts, None where one is missing; tell how many characters the longest one has."""
        cdef int64_t length = 0, offsets_length = 0, row, begin, end
        cdef const char* offsets = self.buffer(&offsets_length)
        cdef const char* data = self.buffer(&length)
        cdef list texts = []
        if offsets_length // layout.width < self.rows + 1:
            raise _Unread
        end = offset_at(offsets, layout.width)
        if end < 0:
            raise _Unread
        for row in range(self.rows):
            begin, end = end, offset_at(offsets + layout.width * (row + 1), layout.width)
            if not begin <= end <= length:
                raise _Unread
            if any_missing and missing_N[row]:
                texts.append(None)
                continue
            self.spend(end - begin)
            text = PyUnicode_DecodeUTF8(data + begin, end - begin, NULL)
            longest[0] = max(longest[0], len(text))
            texts.append(text)
        return texts


cdef inline double single(const char* at) noexcept nogil:
    cdef float value
    memcpy(&value, at, 4)
    return value


cdef inline int64_t offset_at(const char* at, int width) noexcept nogil:
    cdef int32_t four
    cdef int64_t eight
    if width == 4:
        memcpy(&four, at, 4)
        return four
    memcpy(&eight, at, 8)
    return eight


cdef inline int64_t whole_number(const char* at, Layout layout) noexcept nogil:
    """Return an integer of one, two or four bytes."""
    cdef uint16_t two
    cdef uint32_t four
    if layout.width == 1:
        return <int8_t> at[0] if layout.is_signed else <int64_t> <uint8_t> at[0]
    if layout.width == 2:
        memcpy(&two, at, 2)
        return <int16_t> two if layout.is_signed else <int64_t> two
    memcpy(&four, at, 4)
    return <int32_t> four if layout.is_signed else <int64_t> four


def read_stream(bytes body not None, bytes key not None, Py_ssize_t most):
    """Return what a stream of one batch with one to so many rows holds, if it can be read; else None.

    Returns:
        The schema's metadata under `key`, None without it; a list of (column's name; its values: int64 or float64 [N]
        or a list of texts and None; which are missing: bool [N] or None where none are; characters of the longest
        text). What is missing among numbers is 0.
    """
    try:
        return _read(body, key, most)
    except (_Unread, UnicodeDecodeError):
        return None


cdef _read(bytes body, bytes key, Py_ssize_t most):
    cdef _Messages messages = _Messages()
    cdef _Flat schema
    cdef _Batch batch = _Batch()
    cdef int64_t root, fields, columns, place, length = 0
    cdef Py_ssize_t column, longest
    cdef Layout layout
    cdef int64_t[:, ::1] values_CN
    cdef uint8_t[:, ::1] missing_CN
    cdef bint any_missing
    messages.body = body
    schema = messages.next(SCHEMA, &length)
    root = schema.needed(schema.target(0), MESSAGE_HEADER)
    if length or schema.small(root, SCHEMA_ENDIANNESS, 2, LITTLE_ENDIAN) != LITTLE_ENDIAN:
        raise _Unread
    if schema.count(schema.child(root, SCHEMA_FEATURES), 8):
        raise _Unread
    head = metadata_of(schema, root, key)
    fields = schema.child(root, SCHEMA_FIELDS)
    columns = schema.count(fields, 4)

    batch.begin(messages)
    # a value takes a byte at least, so that there are more only where they share them
    if not 1 <= batch.rows <= most or not 1 <= columns <= len(body) // batch.rows or batch.nodes != columns:
        raise _Unread
    given = []
    all_values_CN, all_missing_CN = np.empty((columns, batch.rows), np.int64), np.zeros((columns, batch.rows), np.uint8)
    values_CN, missing_CN = all_values_CN, all_missing_CN
    for column in range(columns):
        place = schema.target(fields + 4 + 4 * column)
        name = schema.text(schema.needed(place, FIELD_NAME))
        batch.spend(len(name))
        layout = layout_of(schema, place)
        any_missing, longest = batch.missing(&missing_CN[column, 0]), 0
        if layout.kind == STRING:
            values = batch.texts(layout, any_missing, &missing_CN[column, 0], &longest)
        else:
            batch.numbers(layout, any_missing, &missing_CN[column, 0], &values_CN[column, 0])
            values = all_values_CN[column].view(np.float64) if layout.kind == NUMBER else all_values_CN[column]
        missing = all_missing_CN[column].view(np.bool_) if any_missing else None
        given.append((name.decode(), values, missing, longest))
    if batch.buffers:
        raise _Unread
    messages.end()
    return head, given


cdef bytes metadata_of(_Flat schema, int64_t root, bytes key):
    """Return what stands under a key, which may stand there once; None where it does not."""
    cdef int64_t pairs = schema.child(root, SCHEMA_METADATA), pair, table, value
    cdef bytes found = None
    for pair in range(schema.count(pairs, 4)):
        table = schema.target(pairs + 4 + 4 * pair)
        value = schema.needed(table, VALUE)
        if schema.is_text(schema.needed(table, KEY), key):
            if found is not None:
                raise _Unread
            found = schema.text(value)
    return found


cdef struct Piece:
    const char* at
    Py_ssize_t size


def join_texts(list texts not None, const int64_t[::1] order_K not None):
    """Return the UTF-8 of some texts one after another, and where each begins and the last one ends, int32 [K + 1].

    None where they are no UTF-8, or more than 31 bits of it.

    Raises:
        IndexError: no such text.
    """
    cdef Py_ssize_t rows = len(order_K), k, total = 0
    cdef int[::1] offsets
    cdef Piece* piece = <Piece*> PyMem_Malloc((rows + 1) * sizeof(Piece))
    cdef char* at
    if piece == NULL:
        raise MemoryError
    try:
        offsets_K1 = np.zeros(rows + 1, np.int32)
        offsets = offsets_K1
        for k in range(rows):
            if not 0 <= order_K[k] < len(texts):
                raise IndexError(f"order: found {order_K[k]}, expected below {len(texts)}")
            piece[k].at = PyUnicode_AsUTF8AndSize(texts[order_K[k]], &piece[k].size)
            total += piece[k].size
            if total > 0x7FFFFFFF:
                return None
            offsets[k + 1] = <int> total
        joined = PyBytes_FromStringAndSize(NULL, total)
        at = PyBytes_AS_STRING(joined)
        for k in range(rows):
            memcpy(at, piece[k].at, piece[k].size)
            at += piece[k].size
        return joined, offsets_K1
    except UnicodeEncodeError:
        return None
    finally:
        PyMem_Free(piece)
