"""Compressed request bodies, inflated to a limit and never beyond it."""

from __future__ import annotations

import zlib

import pyarrow as pa

from service.errors import BodyMalformed, BodyTooLarge, MediaTypeUnsupported

ENCODINGS = ("identity", "gzip", "zstd")
_GZIP_WINDOW = 31


def inflate(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Return a body without its Content-Encoding.

    Raises:
        MediaTypeUnsupported: another encoding than gzip or zstd.
        BodyTooLarge: it inflates to more than the limit; no more than that is ever held.
        BodyMalformed: it is not what the encoding says, is cut off, or goes on after its end.
    """
    encoding = encoding.strip().lower()
    if encoding == "identity":
        return body
    if encoding == "gzip":
        plain = _gunzip(body, limit_bytes)
    elif encoding == "zstd":
        plain = _unzstd(body, limit_bytes)
    else:
        raise MediaTypeUnsupported("Content-Encoding", found=repr(encoding[:100]), expected=" or ".join(ENCODINGS))
    if len(plain) > limit_bytes:
        raise BodyTooLarge("body", found=f"more than {limit_bytes} bytes inflated", expected=f"at most {limit_bytes}")
    return plain


def _gunzip(body: bytes, limit_bytes: int) -> bytes:
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    try:
        plain = inflater.decompress(body, limit_bytes + 1)
    except zlib.error as exc:
        raise BodyMalformed("body", found=str(exc), expected="a gzip stream") from exc
    if len(plain) <= limit_bytes and (not inflater.eof or inflater.unused_data):
        raise BodyMalformed("body", found="a cut or overlong stream", expected="one whole gzip stream")
    return plain


def _unzstd(body: bytes, limit_bytes: int) -> bytes:
    if not body:
        raise BodyMalformed("body", found="nothing", expected="a zstd stream")
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), "zstd") as stream:
            return bytes(stream.read(limit_bytes + 1))
    except (pa.ArrowException, OSError) as exc:
        raise BodyMalformed("body", found=" ".join(str(exc).split())[:200], expected="a zstd stream") from exc
