"""Signatures of bundles, made from what docs/serving.md says of them and not by the service's own code."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Signer:
    """Signs bundles by a key of its own."""

    def __init__(self) -> None:
        """Make a key."""
        self._key = Ed25519PrivateKey.generate()

    @property
    def public_pem(self) -> bytes:
        """The public key, as rankers read it."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, folder: Path, name: str, version: str) -> None:
        """Sign the bundle in a folder as this version of this model; one without a manifest is left as it is."""
        manifest = folder / "manifest.json"
        if not manifest.exists():
            return
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        signature = self._key.sign(f"dlen bundle 1\n{name}/{version}\nsha256:{digest}\n".encode())
        key_id = hashlib.sha256(self._key.public_key().public_bytes_raw()).hexdigest()[:16]
        (folder / "manifest.sig").write_text(f"ed25519 {key_id} {base64.b64encode(signature).decode()}\n")
