"""Signed bundles: what a trusted key lets through, and one error for each thing that it does not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bundle.errors import KeyInvalid, SignatureInvalid, SignatureMissing, SignatureUntrusted
from bundle.signature import (
    BYTES_LIMIT,
    TrustedKeys,
    key_id,
    read_signing_key,
    read_trusted_keys,
    statement,
    write_signature,
)

MANIFEST = b'{"schema_version": 1}'
OURS, THEIRS = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
TRUST = TrustedKeys({key_id(OURS.public_key()): OURS.public_key()})


def pem(key, encryption=None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "models" / "feed" / "7"
    made.mkdir(parents=True)
    return made


def sign(folder, key=OURS, manifest=MANIFEST, written_as=None):
    return write_signature(folder, written_as or folder, manifest, key)


def test_a_manifest_signed_by_a_trusted_key_is_let_through(folder):
    assert sign(folder) == TRUST.check(folder, MANIFEST) == key_id(OURS.public_key())


def test_a_bundle_may_be_signed_in_another_folder_than_it_will_lie_in(folder, tmp_path):
    aside = tmp_path / ".aside"
    aside.mkdir()
    sign(aside, written_as=folder)
    shutil.move(aside / "manifest.sig", folder)
    TRUST.check(folder, MANIFEST)


def test_a_bundle_without_a_signature_is_refused(folder):
    with pytest.raises(SignatureMissing, match=key_id(OURS.public_key())):
        TRUST.check(folder, MANIFEST)


def test_a_signature_by_another_key_is_refused(folder):
    sign(folder, THEIRS)
    with pytest.raises(SignatureUntrusted, match=key_id(THEIRS.public_key())):
        TRUST.check(folder, MANIFEST)


def test_another_key_that_calls_itself_by_a_trusted_id_is_refused(folder):
    sign(folder, THEIRS)
    file = folder / "manifest.sig"
    file.write_text(file.read_text().replace(key_id(THEIRS.public_key()), key_id(OURS.public_key())))
    with pytest.raises(SignatureInvalid, match="of something else"):
        TRUST.check(folder, MANIFEST)


@pytest.mark.parametrize("at", range(len(MANIFEST)))
def test_a_changed_manifest_is_refused(folder, at):
    sign(folder)
    changed = bytearray(MANIFEST)
    changed[at] ^= 1
    with pytest.raises(SignatureInvalid, match="feed/7 as it is"):
        TRUST.check(folder, bytes(changed))


@pytest.mark.parametrize("other", ["feed/8", "other/7"])
def test_a_signature_does_not_follow_a_bundle_to_another_version_or_name(folder, tmp_path, other):
    sign(folder)
    moved = tmp_path / "models" / other
    shutil.copytree(folder, moved)
    with pytest.raises(SignatureInvalid, match=f"{other} as it is"):
        TRUST.check(moved, MANIFEST)


def test_keys_are_changed_one_after_the_other(folder):
    sign(folder)
    sign(folder, THEIRS)
    both = TrustedKeys({**TRUST.keys, key_id(THEIRS.public_key()): THEIRS.public_key()})
    only_theirs = TrustedKeys({key_id(THEIRS.public_key()): THEIRS.public_key()})
    assert TRUST.check(folder, MANIFEST) == key_id(OURS.public_key())
    assert only_theirs.check(folder, MANIFEST) == key_id(THEIRS.public_key())
    assert both.check(folder, MANIFEST) in both.keys


def test_a_wrong_signature_by_one_trusted_key_does_not_spoil_a_right_one_by_another(folder):
    sign(folder, THEIRS, manifest=b"older")
    sign(folder, OURS)
    both = TrustedKeys({**TRUST.keys, key_id(THEIRS.public_key()): THEIRS.public_key()})
    assert both.check(folder, MANIFEST) == key_id(OURS.public_key())


@pytest.mark.parametrize(
    "text",
    ["", "\n", "ed25519 0123456789abcdef AAAA\n", "rsa 0123456789abcdef " + "A" * 86 + "==", "\xff\xfe", "x" * 99999],
)
def test_a_file_of_signatures_that_does_not_read_is_refused(folder, text):
    (folder / "manifest.sig").write_text(text, "latin-1")
    with pytest.raises(SignatureInvalid, match=r"another text, want lines of"):
        TRUST.check(folder, MANIFEST)


def test_a_folder_or_a_pipe_is_no_signature(folder):
    (folder / "manifest.sig").mkdir()
    with pytest.raises(SignatureMissing):
        TRUST.check(folder, MANIFEST)


def test_the_statement_is_what_the_module_says(folder):
    assert statement(folder, b"").decode() == (
        "dlen bundle 1\nfeed/7\nsha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
    )


def test_keys_are_read_from_what_openssl_writes(tmp_path, folder, system_command):
    openssl = system_command("openssl")
    secret, public = tmp_path / "signing.pem", tmp_path / "trusted.pem"
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", secret], check=True)
    subprocess.run([openssl, "pkey", "-in", secret, "-pubout", "-out", public], check=True)
    signed_by = sign(folder, read_signing_key(secret))
    public.write_bytes(b"# the old key\n" + public_pem(THEIRS) + b"\n# the new key\n" + public.read_bytes())
    trusted = read_trusted_keys(public)
    assert trusted.check(folder, MANIFEST) == signed_by
    assert len(trusted.keys) == 2


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "no private key"),
        (b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "no private key"),
        (public_pem(OURS), "no private key"),
        (pem(generate_private_key(SECP256R1())), "a key of another kind"),
        (pem(OURS, BestAvailableEncryption(b"secret")), "an encrypted key"),
        (None, "No such file"),
    ],
)
def test_a_signing_key_that_is_none_is_named_and_not_shown(tmp_path, data, found):
    file = tmp_path / "signing.pem"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(KeyInvalid, match=found) as raised:
        read_signing_key(file)
    assert "c2VjcmV0" not in str(raised.value)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "key 1: got no public key"),
        (public_pem(OURS) + public_pem(generate_private_key(SECP256R1())), "key 2: got a key of another kind"),
        (public_pem(OURS) + pem(OURS), "a private key, which must not lie here"),
        (b"#" * BYTES_LIMIT + public_pem(OURS), "no public key"),
        (None, "No such file"),
    ],
)
def test_a_file_of_trusted_keys_is_good_as_a_whole_or_refused(tmp_path, data, found):
    file = tmp_path / "trusted.pem"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(KeyInvalid, match=found):
        read_trusted_keys(file)
