import pytest

from loadtest.errors import RequestsInvalid, TargetInvalid
from loadtest.traffic import build_requests, parse_target, read_bodies


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", ("127.0.0.1", 8000, "/v1/rank", False)),
        ("http://host/", ("host", 80, "/v1/rank", False)),
        ("https://host/v2/x?y=1", ("host", 443, "/v2/x?y=1", True)),
        ("http://[::1]:8000/a", ("::1", 8000, "/a", False)),
    ],
)
def test_a_url_is_a_target_with_the_rank_path_by_default(url, expected):
    target = parse_target(url)
    assert (target.host, target.port, target.path, target.tls) == expected


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://h:99999", "http://h/a b\r\nX: 1"])
def test_what_is_not_an_http_url_is_refused(url):
    with pytest.raises(TargetInvalid, match="want http://HOST"):
        parse_target(url)


@pytest.mark.parametrize("header", ["no colon", ": empty", "A: b\r\nX: injected"])
def test_what_is_not_a_header_is_refused(header):
    with pytest.raises(TargetInvalid, match="want 'Name: value'"):
        parse_target("http://h", [header])


def test_a_request_is_complete_http():
    target = parse_target("http://h:81/p", ["X-Key: k", "Content-Type: a/b"])
    (request,) = build_requests(target, [b'{"a": 1}'])
    head, _, body = request.partition(b"\r\n\r\n")
    assert body == b'{"a": 1}'
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /p HTTP/1.1"
    assert {"Host: h:81", "X-Key: k", "Content-Type: a/b", "Content-Length: 8"} <= set(lines)


@pytest.mark.parametrize(
    ("text", "bodies"),
    [
        ('{"a": 1}', [b'{"a": 1}']),
        ('{\n "a": 1\n}\n', [b'{\n "a": 1\n}\n']),
        ('{"a": 1}\n\n{"a": 2}\n', [b'{"a": 1}', b'{"a": 2}']),
    ],
)
def test_a_file_holds_one_body_or_one_a_line(tmp_path, text, bodies):
    (tmp_path / "r.json").write_text(text)
    assert read_bodies(tmp_path / "r.json") == bodies


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no request"),
        ("\n\n", "no request"),
        ('{"a": 1}\nnonsense', "line 2"),
        ("[1]", "line 1"),
        ("[" * 9999, "l"),
    ],
)
def test_a_file_without_json_objects_is_refused_with_the_line(tmp_path, text, message):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(RequestsInvalid, match=message):
        read_bodies(tmp_path / "r.json")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestsInvalid, match="No such file"):
        read_bodies(tmp_path / "nosuch.json")
