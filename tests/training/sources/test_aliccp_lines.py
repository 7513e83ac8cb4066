import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from training.errors import LineInvalid, SourceUnreadable
from training.sources import aliccp_lines
from training.sources.aliccp_lines import COMMON, SKELETON, _parsed, check_line, packed, parse_lines, read_pieces

LINE = b"7,1,0,84dceed2e3a667f8,3,205\x024201\x031.0\x01109_14\x02123456789012\x032.39790\x01109_14\x025\x030.5"


def slow(line, heads):
    """The obvious parser: labels, index, features."""
    parts = line.decode().split(",")
    features = [tuple(feature.replace("\x03", "\x02").split("\x02")[:2]) for feature in parts[-1].split("\x01")]
    return [part == "1" for part in parts[1:3]][: len(heads) - 3], parts[-3], features


def fast(piece, heads):
    lines = parse_lines(piece, heads, "file", 1)
    found = []
    for row in range(len(lines.index)):
        mine = np.flatnonzero(lines.line_K == row)
        names = [lines.field_K[k].tobytes().rstrip(b"\0").decode() for k in mine]
        ids = [str(lines.id_K[k]) for k in mine]
        index = lines.index[row].tobytes().rstrip(b"\0").decode()
        found.append((lines.labels[row].tolist(), index, list(zip(names, ids, strict=True))))
    return found


features = st.lists(
    st.tuples(st.sampled_from(["101", "109_14", "x", "12345678"]), st.integers(0, 10**16 - 1)), min_size=1, max_size=5
)
indices = st.text("0123456789abcdef", min_size=1, max_size=16)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), indices, features), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_lines_are_read_as_the_obvious_parser_reads_them(rows):
    lines = []
    for number, (click, buy, index, found) in enumerate(rows):
        text = "\x01".join(f"{field}\x02{id_}\x031.0" for field, id_ in found)
        lines.append(f"{number},{click:d},{buy:d},{index},{len(found)},{text}".encode())
    assert fast(b"\n".join(lines) + b"\n", SKELETON) == [slow(line, SKELETON) for line in lines]


@given(
    st.integers(0, len(LINE) - 1), st.sampled_from([b"", b",", b"\n", b"\x01", b"\x02", b"\x03", b"x", b"0", b"\xc3"])
)
@example(0, b"")
@settings(max_examples=300, deadline=None)
def test_both_parsers_refuse_the_same_lines(at, change):
    piece = LINE[:at] + change + LINE[at + 1 :] + b"\n"
    try:
        for line in piece.split(b"\n")[:-1]:
            check_line(line, SKELETON, "line")
        good = True
    except LineInvalid:
        good = False
    assert (_parsed(piece, len(SKELETON)) is not None) == good


@pytest.mark.parametrize(
    ("old", "new", "place", "found", "expected"),
    [
        (b",3,205", b",2,205", "line 12: feature_num", "2", "3 features"),
        (b"7,1,0", b"7,2,0", "line 12: click", "'2'", "0 or 1"),
        (
            b"7,1,0",
            b"7,1",
            "line 12",
            "5 columns",
            "sample_id, click, buy, common_feature_index, feature_num, features",
        ),
        (b"\x024201\x03", b"\x0242o1\x03", "line 12: feature 1: id", "'42o1'", "at most 16 digits"),
        (b"\x01109_14\x0212", b"\x01109_14 12", "line 12: feature 2", "'109_14 12345", "joined by"),
        (b"205\x024201\x031.0", b"205:4201:1.0", "line 12: feature 1", "'205:4201:1.0'", r"field\x02id\x03value"),
        (b"84dceed2e3a667f8", b"84dceed2e3a667f80", "line 12: common_feature_index", "'84dce", "1 to 16 bytes"),
        (b",3,205", b",three,205", "line 12: feature_num", "'three'", "a number"),
    ],
)
def test_a_broken_line_is_named_with_what_was_found_and_expected(old, new, place, found, expected):
    with pytest.raises(LineInvalid) as caught:
        parse_lines(LINE + b"\n" + LINE.replace(old, new, 1) + b"\n", SKELETON, "rows.csv", 11)
    assert str(caught.value).startswith("rows.csv: " + place)
    assert found in str(caught.value) and expected in str(caught.value)


def test_an_empty_line_is_refused():
    with pytest.raises(LineInvalid, match="line 2: got 1 columns"):
        parse_lines(LINE + b"\n\n", SKELETON, "rows.csv", 1)


def test_common_lines_have_no_labels():
    lines = parse_lines(b"a1,1,101\x027\x031.0\n", COMMON, "common.csv", 1)
    assert lines.labels.shape == (1, 0)
    assert lines.field_K.tolist() == [packed("101")]
    assert lines.id_K.tolist() == [7]


@pytest.mark.parametrize("ends_with_newline", [True, False])
@pytest.mark.parametrize("shares", [1, 3, 50])
def test_shares_of_a_file_hold_each_line_once(tmp_path, monkeypatch, ends_with_newline, shares):
    monkeypatch.setattr(aliccp_lines, "PIECE_BYTES", 64)
    path = tmp_path / "file"
    lines = [f"{number}:".encode() + b"x" * (number * 7 % 50) for number in range(100)]
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends_with_newline else b""))
    size = path.stat().st_size
    bounds = [size * share // shares for share in range(shares + 1)]
    pieces = [piece for share in range(shares) for piece in read_pieces(path, bounds[share], bounds[share + 1])]
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert b"".join(pieces).split(b"\n")[:-1] == lines


def test_windows_line_ends_are_taken(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a\r\nb\r\n")
    assert list(read_pieces(path, 0, 6)) == [b"a\nb\n"]


def test_a_line_longer_than_a_piece_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(aliccp_lines, "PIECE_BYTES", 64)
    path = tmp_path / "file"
    path.write_bytes(b"a\n" + b"x" * 500 + b"\n")
    with pytest.raises(SourceUnreadable, match="byte 2: got a longer line"):
        list(read_pieces(path, 0, path.stat().st_size))
