# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The loops over every character of a JSON request and answer, compiled.

They do what `typed_json` and `answer` do without them, for what is common, and return None for all else:
escapes, names and kinds that are not expected, whatever is wrong. Then those do it, and say what is wrong.

Every read stops at the NUL that ends any `bytes`: no character that is read past is one.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, strlen

import numpy as np

from bundle.columns import Column

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    double PyOS_string_to_double(const char* text, char** end, void* overflow) except? -1.0
    char* PyOS_double_to_string(double value, char code, int precision, int flags, int* kind) except NULL
    int Py_DTSF_ADD_DOT_0
    PyObject* PyBytes_FromStringAndSize(const char* text, Py_ssize_t size) except NULL
    char* PyBytes_AsString(PyObject* text) except NULL
    int _PyBytes_Resize(PyObject** text, Py_ssize_t size) except -1

ctypedef const unsigned char* Text

cdef enum:
    LONGEST_NAME = 256  # characters of an id or group, as `document.Name` says
    UNREAD = -1
    OF_IDS = -2
    OF_GROUPS = -3
    LONGEST_NUMBER = 32
    EIGHT_DIGITS = 100000000

cdef enum Kind:
    INTEGER
    NUMBER
    STRING
    OTHER

cdef enum Member:
    ID
    FEATURES
    GROUP
    ANOTHER

_KINDS = {"integer": INTEGER, "number": NUMBER, "string": STRING}

cdef double[23] TENS
cdef int _power
TENS[0] = 1.0
for _power in range(1, 23):
    TENS[_power] = TENS[_power - 1] * 10.0

cdef char[200] PAIRS
for _power in range(100):
    PAIRS[2 * _power] = c'0' + _power // 10
    PAIRS[2 * _power + 1] = c'0' + _power % 10


cdef inline Text space(Text at) noexcept nogil:
    while at[0] == c' ' or at[0] == c'\n' or at[0] == c'\r' or at[0] == c'\t':
        at += 1
    return at


cdef inline Text plain_string(Text at) noexcept nogil:
    """Return where the quote is that ends the string at `at`; NULL if none does, or characters are escaped."""
    if at[0] != c'"':
        return NULL
    at += 1
    while at[0] != c'"':
        if at[0] < c' ' or at[0] == c'\\':
            return NULL
        at += 1
    return at


cdef inline Text after_key(Text quote) noexcept nogil:
    """Return where the value begins whose key ends with a quote; NULL if no colon is between them."""
    cdef Text at = space(quote + 1)
    return space(at + 1) if at[0] == c':' else NULL


cdef inline Text after_value(Text at, unsigned char closing, bint* more) noexcept nogil:
    """Return what follows a value: the next one, if there are more, or what is behind the closing character; else NULL.

    Of NULL, which is no value, NULL.
    """
    if at == NULL:
        return NULL
    at = space(at)
    more[0] = at[0] == c','
    if more[0]:
        return space(at + 1)
    return at + 1 if at[0] == closing else NULL


cdef inline Member member_of(Text key, Text quote) noexcept nogil:
    """Return which property of a candidate, or of all, a key from quote to quote is."""
    if quote - key == 3 and memcmp(key + 1, b"id", 2) == 0:
        return ID
    if quote - key == 9 and memcmp(key + 1, b"features", 8) == 0:
        return FEATURES
    return GROUP if quote - key == 6 and memcmp(key + 1, b"group", 5) == 0 else ANOTHER


cdef inline Text property_key(Text key, Member* member) noexcept nogil:
    """Tell which property a key is; return where its value begins, NULL if there is none."""
    cdef Text quote = plain_string(key)
    if quote == NULL:
        return NULL
    member[0] = member_of(key, quote)
    return after_key(quote)


cdef inline object text_of(Text begin, Text end):
    """Return what stands between two quotes; None where it is too long.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    cdef object text = PyUnicode_DecodeUTF8(<const char*> begin + 1, end - begin - 1, NULL)
    return text if len(text) <= LONGEST_NAME else None


cdef inline Text null_literal(Text at) noexcept nogil:
    """Return what follows a null; NULL if something else is there."""
    return at + 4 if at[0] == c'n' and at[1] == c'u' and at[2] == c'l' and at[3] == c'l' else NULL


cdef inline Text integer(Text at, int64_t* value) noexcept nogil:
    """Read an integer of 64 bits; return what follows it, NULL if there is none."""
    cdef bint negative = at[0] == c'-'
    cdef uint64_t found = 0
    cdef Text begin
    at += negative
    begin = at
    while c'0' <= at[0] <= c'9':
        if at - begin == 19:
            return NULL
        found = 10 * found + (at[0] - c'0')
        at += 1
    if at == begin or (begin[0] == c'0' and at - begin > 1) or found > <uint64_t> 0x7FFFFFFFFFFFFFFF:
        return NULL
    value[0] = -<int64_t> found if negative else <int64_t> found
    return at


cdef Text number(Text at, double* value) except? NULL:
    """Read a number; return what follows it, NULL if there is none or a double does not hold it."""
    cdef Text begin = at
    cdef Text digits
    cdef uint64_t mantissa = 0
    cdef int kept = 0, scale = 0, exponent = 0
    cdef bint negative = at[0] == c'-', raised
    cdef char* end = NULL
    at += negative
    digits = at
    while c'0' <= at[0] <= c'9':
        mantissa = 10 * mantissa + (at[0] - c'0')
        at += 1
    if at == digits or (digits[0] == c'0' and at - digits > 1):
        return NULL
    kept = <int> min(at - digits, 1000)
    if at[0] == c'.':
        at += 1
        digits = at
        while c'0' <= at[0] <= c'9':
            mantissa = 10 * mantissa + (at[0] - c'0')
            at += 1
        if at == digits:
            return NULL
        scale = <int> min(at - digits, 1000)
        kept += scale
    if at[0] == c'e' or at[0] == c'E':
        at += 1
        raised = at[0] != c'-'
        if at[0] == c'-' or at[0] == c'+':
            at += 1
        digits = at
        while c'0' <= at[0] <= c'9':
            if exponent < 10000:
                exponent = 10 * exponent + (at[0] - c'0')
            at += 1
        if at == digits:
            return NULL
        scale = scale - exponent if raised else scale + exponent
    # both are exact up to here, so that one rounding gives the nearest double (Clinger, 1990)
    if kept <= 19 and mantissa <= (<uint64_t> 1 << 53) and -22 <= scale <= 22:
        value[0] = <double> mantissa / TENS[scale] if scale >= 0 else <double> mantissa * TENS[-scale]
        if negative:
            value[0] = -value[0]
        return at
    value[0] = PyOS_string_to_double(<const char*> begin, &end, NULL)
    return at if <Text> end == at and isfinite(value[0]) else NULL


cdef Text skipped(Text at) noexcept nogil:
    """Return what follows a value of any kind; NULL if it does not end. What it skips need not be JSON."""
    cdef int64_t depth = 0
    while True:
        if at[0] == c'"':
            at += 1
            while at[0] != c'"':
                if at[0] == c'\\':
                    at += 1
                if at[0] == 0:
                    return NULL
                at += 1
        elif at[0] == c'{' or at[0] == c'[':
            depth += 1
        elif at[0] == c'}' or at[0] == c']':
            depth -= 1
        elif at[0] == 0:
            return NULL
        elif depth == 0:  # a number or a literal
            while at[0] > c' ' and at[0] != c',' and at[0] != c'}' and at[0] != c']':
                at += 1
            return at
        at += 1
        if depth <= 0:
            return at


cdef struct Feature:
    const char* name
    Py_ssize_t size
    Kind kind


@cython.final
cdef class CandidateReader:
    """Takes the candidates out of the bodies of one schema's requests."""

    cdef tuple texts, names
    cdef Feature* known
    cdef Py_ssize_t features

    def __init__(self, names, kinds):
        """Take candidates' features and their kinds: integer, number, string, or another, which is not read."""
        self.texts = tuple(names)
        self.names = tuple(name.encode() for name in names)
        self.features = len(self.names)
        self.known = <Feature*> PyMem_Malloc(max(1, self.features) * sizeof(Feature))
        if self.known == NULL:
            raise MemoryError
        for feature, (name, kind) in enumerate(zip(self.names, kinds, strict=True)):
            size = len(name) if needs_no_escapes(PyBytes_AS_STRING(name), len(name)) else -1  # no key is then its name
            self.known[feature] = Feature(PyBytes_AS_STRING(name), size, _KINDS.get(kind, OTHER))

    def __dealloc__(self):
        PyMem_Free(self.known)

    def read(self, bytes body not None, Py_ssize_t most):
        """Return the candidates of a body, if it can be read and they are at most so many; else None.

        Returns:
            The body with an empty list in the candidates' place, which may be wrong elsewhere; ids; groups, or None
            where there are none; features by name where any candidate has a value: a `Column` of int64 or float64, or a
            list of texts and None.
        """
        if most < 1:
            return None
        try:
            return self._read(body, _Reading(self, body, most))
        except UnicodeDecodeError:
            return None

    cdef object _read(self, bytes body, _Reading reading):
        cdef Text begin = <Text> PyBytes_AS_STRING(body)
        cdef Text start = NULL
        cdef Text end = NULL
        cdef Text at = space(begin)
        cdef Text key
        cdef bint more = True, wanted
        if at[0] != c'{':
            return None
        at = space(at + 1)
        while more:
            key = at
            at = plain_string(key)
            if at == NULL:
                return None
            wanted = at - key == 11 and memcmp(key + 1, b"candidates", 10) == 0
            at = after_key(at)
            if at == NULL or (wanted and start != NULL):
                return None
            if wanted:
                start = at
                at = end = reading.rows(at) if at[0] == c'[' else reading.columns(at)
            else:
                at = skipped(at)
            at = after_value(at, c'}', &more)
            if at == NULL:
                return None
        if start == NULL or space(at) - begin != len(body):
            return None
        head = body[: start - begin] + b"[]" + body[end - begin :]
        return head, reading.ids, reading.groups if reading.some_groups else None, reading.given()


@cython.final
cdef class _Reading:
    """What is read of one body: values [F, most], of which as many are filled as there are candidates."""

    cdef CandidateReader reader  # keeps `known`
    cdef Feature* known
    cdef Py_ssize_t most, features
    cdef list ids, groups, texts
    cdef bint some_groups
    cdef object values_FM, missing_FM, counts_2F
    cdef Text limit
    cdef int64_t* values
    cdef uint8_t* missing
    cdef int64_t* filled
    cdef int64_t* lacking
    """By feature: values read so far, a null or nothing among them, and how many of those there are."""

    def __cinit__(self, CandidateReader reader, bytes body, Py_ssize_t most):
        cdef int64_t[:, ::1] values, counts
        cdef uint8_t[:, ::1] missing
        self.reader, self.known = reader, reader.known
        self.features = reader.features
        self.most = min(most, len(body) // 2 + 1)  # no value takes less than two characters
        self.ids, self.groups = [], []
        self.texts = [[] for _ in range(self.features)]
        self.some_groups = False
        self.values_FM = np.empty((self.features, self.most), np.int64)
        self.missing_FM = np.zeros((self.features, self.most), np.uint8)
        self.counts_2F = np.zeros((2, self.features), np.int64)
        self.limit = <Text> PyBytes_AS_STRING(body) + len(body)
        if self.features:
            values, missing, counts = self.values_FM, self.missing_FM, self.counts_2F
            self.values, self.missing = &values[0, 0], &missing[0, 0]
            self.filled, self.lacking = &counts[0, 0], &counts[1, 0]

    cdef Text rows(self, Text at) except? NULL:
        """Read a list of candidates; return what follows it, NULL if it is anything but the usual."""
        cdef Py_ssize_t row = 0, feature
        cdef bint more = True
        at = space(at + 1)
        if at[0] == c']':
            return at + 1
        while more:
            if row == self.most or at[0] != c'{':
                return NULL
            at = self.candidate(space(at + 1), row)
            if at == NULL:
                return NULL
            row += 1
            for feature in range(self.features):
                if self.filled[feature] < row:
                    self.lack(feature)
            at = after_value(at, c']', &more)
            if at == NULL:
                return NULL
        return at

    cdef Text candidate(self, Text at, Py_ssize_t row) except? NULL:
        """Read a candidate from its first key on."""
        cdef Member member = ANOTHER
        cdef bint with_features = False, more = True
        while more:
            at = property_key(at, &member)
            if at == NULL:
                return NULL
            if member == ID and len(self.ids) == row:
                at = self.name(at, self.ids)
            elif member == FEATURES and at[0] == c'{' and not with_features:
                with_features = True
                at = self.of_candidate(space(at + 1), row)
            elif member == GROUP and len(self.groups) == row:
                at = self.group(at)
            else:
                return NULL
            at = after_value(at, c'}', &more)
            if at == NULL:
                return NULL
        if len(self.ids) == row:
            return NULL
        if len(self.groups) == row:
            self.groups.append(None)
        return at

    cdef Text of_candidate(self, Text at, Py_ssize_t row) except? NULL:
        """Read a candidate's features from the first key on."""
        cdef Py_ssize_t feature = -1
        cdef bint more = True
        if at[0] == c'}':
            return at + 1
        while more:
            feature = self.feature(at, feature + 1)
            if feature < 0 or self.filled[feature] != row:
                return NULL
            at = after_key(at + self.known[feature].size + 1)
            if at == NULL:
                return NULL
            at = after_value(self.value(at, feature), c'}', &more)
            if at == NULL:
                return NULL
        return at

    cdef Text columns(self, Text at) except? NULL:
        """Read lists of candidates' properties; return what follows them, NULL if they are anything but the usual."""
        cdef Member member = ANOTHER
        cdef Py_ssize_t feature
        cdef bint with_id = False, with_features = False, with_group = False, more = True
        if at[0] != c'{':
            return NULL
        for feature in range(self.features):
            self.filled[feature] = UNREAD
        at = space(at + 1)
        while more:
            at = property_key(at, &member)
            if at == NULL:
                return NULL
            if member == ID and not with_id:
                with_id = True
                at = self.each(at, OF_IDS)
            elif member == FEATURES and at[0] == c'{' and not with_features:
                with_features = True
                at = self.feature_columns(space(at + 1))
            elif member == GROUP and not with_group:
                with_group = True
                at = self.each(at, OF_GROUPS)
            else:
                return NULL
            at = after_value(at, c'}', &more)
            if at == NULL:
                return NULL
        if not with_id or (with_group and len(self.groups) != len(self.ids)):
            return NULL
        for feature in range(self.features):
            if self.filled[feature] == UNREAD:
                self.filled[feature] = self.lacking[feature] = len(self.ids)
            elif self.filled[feature] != len(self.ids):
                return NULL
        return at

    cdef Text feature_columns(self, Text at) except? NULL:
        """Read one list per feature from the first key on."""
        cdef Py_ssize_t feature = -1
        cdef bint more = True
        if at[0] == c'}':
            return at + 1
        while more:
            feature = self.feature(at, feature + 1)
            if feature < 0 or self.filled[feature] != UNREAD:
                return NULL
            self.filled[feature] = 0
            at = after_key(at + self.known[feature].size + 1)
            if at == NULL:
                return NULL
            at = after_value(self.each(at, feature), c'}', &more)
            if at == NULL:
                return NULL
        return at

    cdef Text each(self, Text at, Py_ssize_t what) except? NULL:
        """Read a list of one feature's values, of ids or of groups."""
        cdef Py_ssize_t row = 0
        cdef bint more = True
        if at[0] != c'[':
            return NULL
        at = space(at + 1)
        if at[0] == c']':
            return at + 1
        while more:
            if row == self.most:
                return NULL
            if what >= 0:
                at = self.value(at, what)
            else:
                at = self.name(at, self.ids) if what == OF_IDS else self.group(at)
            row += 1
            at = after_value(at, c']', &more)
            if at == NULL:
                return NULL
        return at

    cdef Py_ssize_t feature(self, Text key, Py_ssize_t expected) noexcept:
        """Return which feature's name a key is, most likely the expected one; -1 if none's."""
        cdef Py_ssize_t feature
        if expected < self.features and self.is_name(key, expected):
            return expected
        for feature in range(self.features):
            if self.is_name(key, feature):
                return feature
        return -1

    cdef inline bint is_name(self, Text key, Py_ssize_t feature) noexcept:
        """Return whether a string is a feature's name, characters escaped in neither."""
        cdef Py_ssize_t size = self.known[feature].size
        if size < 0:
            return False
        if key[0] != c'"' or self.limit - key < size + 2 or key[size + 1] != c'"':
            return False
        return memcmp(key + 1, self.known[feature].name, size) == 0

    cdef Text value(self, Text at, Py_ssize_t feature) except? NULL:
        """Read a feature's next value."""
        cdef Kind kind = self.known[feature].kind
        cdef Py_ssize_t row = self.filled[feature]
        cdef Text end
        if at[0] == c'n':
            self.lack(feature)
            return null_literal(at)
        if kind == INTEGER:
            at = integer(at, &self.values[feature * self.most + row])
        elif kind == NUMBER:
            at = number(at, <double*> &self.values[feature * self.most + row])
        elif kind == STRING:
            end = plain_string(at)
            if end == NULL:
                return NULL
            (<list> self.texts[feature]).append(PyUnicode_DecodeUTF8(<const char*> at + 1, end - at - 1, NULL))
            at = end + 1
        else:
            return NULL
        self.filled[feature] = row + 1
        return at

    cdef int lack(self, Py_ssize_t feature) except -1:
        """Note that a feature's next value is missing."""
        cdef Kind kind = self.known[feature].kind
        cdef Py_ssize_t row = self.filled[feature]
        if kind == STRING:
            (<list> self.texts[feature]).append(None)
        elif kind == NUMBER:
            (<double*> &self.values[feature * self.most + row])[0] = 0.0
        else:
            self.values[feature * self.most + row] = 0
        self.missing[feature * self.most + row] = 1
        self.filled[feature] = row + 1
        self.lacking[feature] += 1
        return 0

    cdef Text name(self, Text at, list names) except? NULL:
        """Read an id or a group."""
        cdef Text end = plain_string(at)
        if end == NULL:
            return NULL
        text = text_of(at, end)
        if text is None:
            return NULL
        names.append(text)
        return end + 1

    cdef Text group(self, Text at) except? NULL:
        """Read a group or null."""
        if at[0] == c'n':
            self.groups.append(None)
            return null_literal(at)
        self.some_groups = True
        return self.name(at, self.groups)

    cdef dict given(self):
        """Return what `CandidateReader.read` says of features."""
        cdef Py_ssize_t rows = len(self.ids), feature
        cdef dict given = {}
        cdef Kind kind
        for feature in range(self.features):
            kind = self.known[feature].kind
            if self.lacking[feature] == rows:
                continue
            name = self.reader.texts[feature]
            if kind == STRING:
                given[name] = self.texts[feature]
            else:
                values_N = self.values_FM[feature, :rows]
                missing_N = self.missing_FM[feature, :rows].view(np.bool_) if self.lacking[feature] else None
                given[name] = Column(values_N.view(np.float64) if kind == NUMBER else values_N, missing_N)
        return given


cdef inline void four_digits(char* at, unsigned int value) noexcept nogil:
    memcpy(at, PAIRS + 2 * (value // 100), 2)
    memcpy(at + 2, PAIRS + 2 * (value % 100), 2)


cdef inline void eight_digits(char* at, unsigned int value) noexcept nogil:
    four_digits(at, value // 10000)
    four_digits(at + 4, value % 10000)


cdef inline char* probability(char* at, float value) except NULL:
    """Write a float32 from 0 to 1 so that its text gives it back; return what follows it.

    9, 12 and 16 decimals are nearer to a number above 2^-4, 2^-14 and 2^-27 than half the way to its neighbours.
    """
    cdef double exact = value
    cdef uint64_t scaled
    cdef char* text
    cdef size_t size
    at[0], at[1] = c'0', c'.'
    if 0.0625 <= exact < 1:
        scaled = <uint64_t> (exact * 1e9 + 0.5)
        at[2] = c'0' + <char> (scaled // EIGHT_DIGITS)
        eight_digits(at + 3, <unsigned int> (scaled % EIGHT_DIGITS))
        return at + 11
    if 0.00006103515625 <= exact < 1:
        scaled = <uint64_t> (exact * 1e12 + 0.5)
        four_digits(at + 2, <unsigned int> (scaled // EIGHT_DIGITS))
        eight_digits(at + 6, <unsigned int> (scaled % EIGHT_DIGITS))
        return at + 14
    if 7.450580596923828e-09 <= exact < 1:
        scaled = <uint64_t> (exact * 1e16 + 0.5)
        eight_digits(at + 2, <unsigned int> (scaled // EIGHT_DIGITS))
        eight_digits(at + 10, <unsigned int> (scaled % EIGHT_DIGITS))
        return at + 18
    text = PyOS_double_to_string(exact, c'r', 0, Py_DTSF_ADD_DOT_0, NULL)
    size = min(strlen(text), <size_t> LONGEST_NUMBER)
    memcpy(at, text, size)
    PyMem_Free(text)
    return at + size


cdef struct Piece:
    const char* at
    Py_ssize_t size


cdef Py_ssize_t needs_no_escapes(const char* text, Py_ssize_t size) noexcept nogil:
    """Return whether a text stands in JSON as it is."""
    cdef Py_ssize_t at
    for at in range(size):
        if <unsigned char> text[at] < 32 or text[at] == c'"' or text[at] == c'\\':
            return False
    return True


def write_items(list ids not None, const int64_t[::1] order_K, bytes scores not None, const float[:, ::1] columns_NC,
                tuple template not None, list last=None, bytes before not None=b"", bytes after not None=b""):
    """Return the JSON of candidates in an order, with commas between them; None where an id needs escapes.

    All of it is written where it stays: an answer is as long as all that its request made the processor read.

    Args:
        ids: of all candidates.
        order_K: which candidates, by position.
        scores: their scores' texts, by position, with commas between them.
        columns_NC: probabilities of all candidates.
        template: what stands before, between and behind a candidate's id, score, probabilities and last value, if any:
            C + 3 texts, or C + 4.
        last: JSON of a last value, bytes by position.
        before, after: what the answer begins and ends with.

    Raises:
        ValueError, IndexError: arguments that do not fit each other.
    """
    cdef Py_ssize_t rows = len(order_K), columns = columns_NC.shape[1], pieces = len(template)
    cdef Py_ssize_t k, column, size, row, candidates = min(<Py_ssize_t> len(ids), columns_NC.shape[0])
    cdef Py_ssize_t most = len(before) + len(scores) + rows + len(after)
    cdef const char* score = PyBytes_AS_STRING(scores)
    cdef const char* comma
    cdef Piece* piece
    cdef Piece* named
    cdef char* at
    cdef PyObject* answer = NULL
    if pieces != columns + 3 + (last is not None):
        raise ValueError(f"template: found {pieces} texts, expected {columns + 3 + (last is not None)}")
    if last is not None and len(last) != rows:
        raise ValueError(f"last: found {len(last)} texts, expected {rows}")
    if rows and scores.count(b",") != rows - 1:
        raise ValueError(f"scores: found {scores.count(b',') + 1} texts, expected {rows}")
    piece = <Piece*> PyMem_Malloc((pieces + rows) * sizeof(Piece))
    if piece == NULL:
        raise MemoryError
    try:
        named = piece + pieces
        for k in range(pieces):
            piece[k].at, piece[k].size = PyBytes_AS_STRING(template[k]), len(<bytes> template[k])
            most += rows * piece[k].size
        for k in range(rows):
            row = order_K[k]
            if not 0 <= row < candidates:
                raise IndexError(f"order: found {row}, expected below {candidates}")
            named[k].at = PyUnicode_AsUTF8AndSize(ids[row], &named[k].size)
            if not needs_no_escapes(named[k].at, named[k].size):
                return None
            most += named[k].size + (0 if last is None else len(<bytes?> last[k]))
        most += rows * columns * LONGEST_NUMBER
        answer = PyBytes_FromStringAndSize(NULL, most)
        at = PyBytes_AsString(answer)
        memcpy(at, PyBytes_AS_STRING(before), len(before))
        at += len(before)
        for k in range(rows):
            row = order_K[k]
            memcpy(at, piece[0].at, piece[0].size)
            at += piece[0].size
            memcpy(at, named[k].at, named[k].size)
            at += named[k].size
            memcpy(at, piece[1].at, piece[1].size)
            at += piece[1].size
            comma = <const char*> memchr(score, c',', len(scores) - (score - PyBytes_AS_STRING(scores)))
            size = (comma if comma != NULL else PyBytes_AS_STRING(scores) + len(scores)) - score
            memcpy(at, score, size)
            at += size
            score += size + 1
            for column in range(columns):
                memcpy(at, piece[2 + column].at, piece[2 + column].size)
                at = probability(at + piece[2 + column].size, columns_NC[row, column])
            if last is not None:
                memcpy(at, piece[pieces - 2].at, piece[pieces - 2].size)
                at += piece[pieces - 2].size
                memcpy(at, PyBytes_AS_STRING(last[k]), len(<bytes> last[k]))
                at += len(<bytes> last[k])
            memcpy(at, piece[pieces - 1].at, piece[pieces - 1].size)
            at += piece[pieces - 1].size
            at[0] = c','
            at += 1
        at -= rows > 0  # the last comma
        memcpy(at, PyBytes_AS_STRING(after), len(after))
        at += len(after)
        _PyBytes_Resize(&answer, at - PyBytes_AsString(answer))
        return <object> answer
    except UnicodeEncodeError:
        return None
    finally:
        PyMem_Free(piece)
        Py_XDECREF(answer)
