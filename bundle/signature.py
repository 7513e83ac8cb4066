"""manifest.sig: who vouches for a bundle, by Ed25519 signatures of its manifest, name and version.

Each line of the file is a signature of one key over a statement of three lines:

    dlen bundle 1
    <name>/<version>
    sha256:<of manifest.json, lower-case hex>

The manifest holds the sha256 of every other file, so the statement covers them all; name and version are in it so that
an old version cannot come back under a higher number, nor one model as another. Keys are PEM files, as
`openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them. Knows nothing of what a manifest says.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from bundle.errors import KeyInvalid, SignatureInvalid, SignatureMissing, SignatureUntrusted
from bundle.files import write_file
from bundle.manifest import SIGNATURE_FILE

BYTES_LIMIT = 65536
_LINE = re.compile(r"ed25519 ([0-9a-f]{16}) ([A-Za-z0-9+/]{86}==)")
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.S)


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys whose signature lets a bundle serve.

    Attributes:
        keys: by `key_id`.
    """

    keys: Mapping[str, Ed25519PublicKey]

    def check(self, folder: Path, manifest: bytes) -> str:
        """Return the id of a trusted key that has signed the manifest as that of the folder's name and version.

        Raises:
            SignatureMissing, SignatureUntrusted, SignatureInvalid: see `bundle.errors`.
        """
        path = folder / SIGNATURE_FILE
        signatures = _read_signatures(path)
        if signatures is None:
            raise SignatureMissing(str(path), found="no such file", expected=f"a signature by one of {self._shown}")
        known = {key_id: signature for key_id, signature in signatures.items() if key_id in self.keys}
        if not known:
            raise SignatureUntrusted(
                str(path), found=f"signatures by {', '.join(signatures)}", expected=f"one by one of {self._shown}"
            )
        for key_id, signature in known.items():
            try:
                self.keys[key_id].verify(signature, statement(folder, manifest))
            except InvalidSignature:
                continue
            return key_id
        name = f"{folder.absolute().parent.name}/{folder.name}"
        raise SignatureInvalid(
            str(path), found=f"a signature by {', '.join(known)} of something else", expected=f"one of {name} as it is"
        )

    @property
    def _shown(self) -> str:
        return ", ".join(self.keys)


def statement(folder: Path, manifest: bytes) -> bytes:
    """Return what is signed: name, version and digest of the manifest."""
    name, version = folder.absolute().parent.name, folder.name
    return f"dlen bundle 1\n{name}/{version}\nsha256:{hashlib.sha256(manifest).hexdigest()}\n".encode()


def write_signature(folder: Path, written_as: Path, manifest: bytes, key: Ed25519PrivateKey) -> str:
    """Sign the manifest of the bundle in `folder` that is, or will be, `written_as`; return the key's id.

    Signatures of other keys stay, so that keys can be changed one after the other.

    Raises:
        SignatureInvalid: there is a file of signatures that does not read.
    """
    path = folder / SIGNATURE_FILE
    mine = key_id(key.public_key())
    signatures = {**(_read_signatures(path) or {}), mine: key.sign(statement(written_as, manifest))}
    lines = [f"ed25519 {name} {base64.b64encode(value).decode()}\n" for name, value in signatures.items()]
    write_file(path, "".join(lines).encode())
    return mine


def key_id(key: Ed25519PublicKey) -> str:
    """Return the first 16 hex digits of the sha256 of the public key's 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def read_signing_key(file: Path) -> Ed25519PrivateKey:
    """Return the private key in a PEM file.

    Raises:
        KeyInvalid: it does not read, is encrypted or of another kind; never tells what the file holds.
    """
    expected = "an Ed25519 private key as PEM, not encrypted"
    try:
        key = load_pem_private_key(_read_limited(file, expected), password=None)
    except TypeError:
        raise KeyInvalid(str(file), found="an encrypted key", expected=expected) from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyInvalid(str(file), found="no private key", expected=expected) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyInvalid(str(file), found="a key of another kind", expected=expected)
    return key


def read_trusted_keys(file: Path) -> TrustedKeys:
    """Return the public keys in a file of one or more PEM blocks; what stands between them is a comment.

    Raises:
        KeyInvalid: it does not read, holds no key, a private one or one of another kind; never tells what it holds.
    """
    expected = "Ed25519 public keys as PEM"
    data = _read_limited(file, expected)
    if b"PRIVATE KEY" in data:
        raise KeyInvalid(str(file), found="a private key, which must not lie here", expected=expected)
    keys: dict[str, Ed25519PublicKey] = {}
    for number, block in enumerate(_PEM.findall(data), 1):
        try:
            key = load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm):
            raise KeyInvalid(f"{file}: key {number}", found="no public key", expected=expected) from None
        if not isinstance(key, Ed25519PublicKey):
            raise KeyInvalid(f"{file}: key {number}", found="a key of another kind", expected=expected)
        keys[key_id(key)] = key
    if not keys:
        raise KeyInvalid(str(file), found="no public key", expected=expected)
    return TrustedKeys(keys)


def _read_limited(file: Path, expected: str) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(BYTES_LIMIT)
    except OSError as exc:
        raise KeyInvalid(str(file), found=exc.strerror, expected=expected) from exc


def _read_signatures(path: Path) -> dict[str, bytes] | None:
    """Return the signatures by key id, None where there is no file."""
    expected = "lines of `ed25519 <key id> <signature in base64>`"
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            lines = file.read(BYTES_LIMIT).decode("ascii", "replace").splitlines()
    except OSError as exc:
        raise SignatureInvalid(str(path), found=exc.strerror, expected=expected) from exc
    matches = [_LINE.fullmatch(line) for line in lines]
    found = {match[1]: base64.b64decode(match[2]) for match in matches if match is not None}
    if not matches or None in matches:
        raise SignatureInvalid(str(path), found="another text", expected=expected)
    return found
