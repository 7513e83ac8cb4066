"""What is sent: the target, and complete HTTP/1.1 requests built once, before the clock starts.

Knows nothing of when or how they are sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.errors import RequestsInvalid, TargetInvalid

DEFAULT_PATH = "/v1/rank"
MAX_FILE_BYTES = 1 << 30
_CONTENT_TYPES = {".arrow": "application/vnd.apache.arrow.stream"}


@dataclass(frozen=True)
class Target:
    """Where requests go.

    Attributes:
        host, port: the TCP end point.
        path: path and query of the request line.
        tls: https.
    """

    host: str
    port: int
    path: str
    tls: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        """The target as a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"


def parse_target(url: str, headers: Sequence[str] = ()) -> Target:
    """Return the target of an http(s) URL; without a path it is `/v1/rank`.

    Args:
        url: such as http://127.0.0.1:8000
        headers: further headers, each `Name: value`.

    Raises:
        TargetInvalid: the URL or a header does not parse.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise TargetInvalid("url", found=repr(url), expected=f"http://HOST[:PORT][/PATH] ({exc})") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or " " in url:
        raise TargetInvalid("url", found=repr(url), expected="http://HOST[:PORT][/PATH]")
    tls = parts.scheme == "https"
    path = parts.path if parts.path not in ("", "/") else DEFAULT_PATH
    query = f"?{parts.query}" if parts.query else ""
    return Target(parts.hostname, port or (443 if tls else 80), path + query, tls, _parse_headers(headers))


def _parse_headers(headers: Sequence[str]) -> dict[str, str]:
    parsed = {}
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip().isascii() or not name.strip() or "\n" in header or "\r" in header:
            raise TargetInvalid("header", found=repr(header[:40]), expected="'Name: value'")
        parsed[name.strip()] = value.strip()
    return parsed


def read_key(path: Path) -> str:
    """Return the first key in a file; lines with # are comments.

    Raises:
        TargetInvalid: it does not read or holds none; never tells what it holds.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="ascii").splitlines()]
    except OSError as exc:
        raise TargetInvalid(str(path), found=exc.strerror, expected="a readable file with a key") from exc
    except UnicodeDecodeError:
        raise TargetInvalid(str(path), found="bytes that are no ASCII text", expected="a file with a key") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise TargetInvalid(str(path), found="no key", expected="one, on a line of its own")
    return keys[0]


def read_bodies(path: Path) -> list[bytes]:
    """Return the request bodies in a file: one JSON document, a JSON document a line, or one Arrow stream.

    Raises:
        RequestsInvalid: the file does not read, is empty, or a line of it is not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RequestsInvalid(str(path), found="a larger file", expected=f"at most {MAX_FILE_BYTES} bytes")
        data = path.read_bytes()
    except OSError as exc:
        raise RequestsInvalid(str(path), found=exc.strerror, expected="a readable file of bodies") from exc
    if path.suffix in _CONTENT_TYPES and data:
        return [data]
    if _is_object(data):
        return [data]
    bodies = [line for line in data.splitlines() if line.strip()]
    if not bodies:
        raise RequestsInvalid(str(path), found="no request", expected="one JSON object, or one a line")
    for number, body in enumerate(bodies, 1):
        if not _is_object(body):
            shown = body[:40].decode("utf-8", "replace")
            raise RequestsInvalid(f"{path}: line {number}", found=repr(shown), expected="a JSON object")
    return bodies


def content_type(path: Path) -> str:
    """Return the Content-Type of the bodies in a file, by its suffix."""
    return _CONTENT_TYPES.get(path.suffix, "application/json")


def build_requests(target: Target, bodies: Sequence[bytes], body_type: str = "application/json") -> list[bytes]:
    """Return each body as a complete HTTP/1.1 POST request, ready to be written to a socket."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    headers = {"Host": f"{host}:{target.port}", "Content-Type": body_type, "Accept": "*/*", **target.headers}
    head = f"POST {target.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False
