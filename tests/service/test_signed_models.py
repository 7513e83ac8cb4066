"""Only signed versions serve, where trusted keys are named: the gate, the running service, and the commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from prometheus_client import CollectorRegistry

from bundle.errors import KeyInvalid, SignatureInvalid, SignatureMissing, SignatureUntrusted
from bundle.manifest import manifest_bytes
from bundle.signature import key_id, write_signature
from cli import main
from service.metrics import Metrics
from service.models import LoadedModel, ModelRepository
from service.settings import Settings
from tests.service.conftest import FUSION

OURS, THEIRS = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))


def public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def trusted(tmp_path) -> Path:
    file = tmp_path / "trusted.pem"
    file.write_bytes(public_pem(OURS))
    return file


@pytest.fixture
def signing(tmp_path) -> Path:
    file = tmp_path / "signing.pem"
    file.write_bytes(OURS.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file


@pytest.fixture
def models(tmp_path, make_bundle) -> Path:
    """A models folder whose one version, tiny/1, is signed by OURS."""
    signed(make_bundle(tmp_path / "models" / "tiny" / "1"))
    return tmp_path / "models"


def signed(folder: Path, key: Ed25519PrivateKey = OURS) -> Path:
    write_signature(folder, folder, manifest_bytes(folder), key)
    return folder


def accept(model: LoadedModel) -> None:
    """A fusion config that fits every model."""


def repository(models: Path, trusted: Path) -> ModelRepository:
    settings = Settings.model_validate({"models": models, "fusion": "f", "trusted_keys_file": trusted})
    found = ModelRepository(settings, Metrics(CollectorRegistry()))
    found.load_all(accept)
    return found


def serves(found: ModelRepository) -> int:
    return found.serving["tiny"].version


def failures(found: ModelRepository, reason: str) -> float | None:
    registry = found._metrics.registry
    return registry.get_sample_value("dlen_load_failures_total", {"kind": "model", "reason": reason})


def test_a_signed_version_serves_and_takes_over(models, trusted, make_bundle):
    found = repository(models, trusted)
    assert serves(found) == 1
    signed(make_bundle(models / "tiny" / "2", seed=2))
    assert found.refresh("tiny", accept) is None
    assert serves(found) == 2


def unsigned(folder):
    """Nothing is done."""


def by_another(folder):
    signed(folder, THEIRS)


def of_another_version(folder):
    shutil.copy(folder.with_name("1") / "manifest.sig", folder)


@pytest.mark.parametrize(
    ("forge", "error"),
    [(unsigned, SignatureMissing), (by_another, SignatureUntrusted), (of_another_version, SignatureInvalid)],
)
def test_a_version_that_no_trusted_key_has_signed_never_serves(models, trusted, make_bundle, forge, error):
    found = repository(models, trusted)
    forge(make_bundle(models / "tiny" / "2"))
    for _ in range(3):
        assert type(found.refresh("tiny", accept)) is error
    assert (serves(found), failures(found, error.__name__)) == (1, 1)


def test_an_old_version_does_not_come_back_under_a_higher_number(models, trusted):
    found = repository(models, trusted)
    shutil.copytree(models / "tiny" / "1", models / "tiny" / "9")
    assert type(found.refresh("tiny", accept)) is SignatureInvalid
    assert serves(found) == 1


def test_a_file_changed_after_signing_is_found_by_its_digest(models, trusted, make_bundle):
    found = repository(models, trusted)
    signed(make_bundle(models / "tiny" / "2"))
    (models / "tiny" / "2" / "features.json").write_bytes(b"{}")
    assert type(found.refresh("tiny", accept)).__name__ == "FileSize"


def test_a_version_signed_later_is_taken_over_then(models, trusted, make_bundle):
    found = repository(models, trusted)
    late = make_bundle(models / "tiny" / "2")
    found.refresh("tiny", accept)
    signed(late)
    assert found.refresh("tiny", accept) is None
    assert serves(found) == 2


def test_keys_rotate_without_a_restart(models, trusted, make_bundle):
    found = repository(models, trusted)
    signed(make_bundle(models / "tiny" / "2"), THEIRS)
    found.refresh("tiny", accept)
    assert serves(found) == 1
    trusted.write_bytes(public_pem(OURS) + public_pem(THEIRS))
    found.refresh("tiny", accept)
    assert serves(found) == 2
    trusted.write_bytes(public_pem(THEIRS))
    signed(make_bundle(models / "tiny" / "3"))
    assert type(found.refresh("tiny", accept)) is SignatureUntrusted
    assert serves(found) == 2


def test_a_file_of_keys_that_turns_bad_lets_nothing_new_serve_until_it_is_mended(models, trusted, make_bundle):
    found = repository(models, trusted)
    good = trusted.read_bytes()
    trusted.unlink()
    signed(make_bundle(models / "tiny" / "2"))
    assert type(found.refresh("tiny", accept)) is KeyInvalid
    assert (serves(found), failures(found, "KeyInvalid")) == (1, 1)
    trusted.write_bytes(good)
    found.refresh("tiny", accept)
    assert serves(found) == 2


def test_without_trusted_keys_signed_and_unsigned_versions_serve(models, make_bundle):
    make_bundle(models / "tiny" / "2")
    found = ModelRepository(Settings.model_validate({"models": models, "fusion": "f"}), Metrics(CollectorRegistry()))
    found.load_all(accept)
    assert serves(found) == 2


def test_a_running_service_refuses_what_is_not_signed_and_takes_what_is(
    tmp_path, models, trusted, make_bundle, start_service
):
    fusion = tmp_path / "fusion.yaml"
    fusion.write_text(FUSION)
    running = start_service(tmp_path, models, fusion, "--trusted-keys-file", str(trusted))
    try:
        make_bundle(models / "tiny" / "2", seed=2)
        give_up = time.monotonic() + 20
        while not running.metric("dlen_load_failures_total", reason="SignatureMissing") and time.monotonic() < give_up:
            time.sleep(0.05)
        assert running.metric("dlen_load_failures_total", kind="model", reason="SignatureMissing") == 1
        assert running.metric("dlen_last_reload_successful", kind="model") == 0
        assert running.metric("dlen_model_info", version="1") == 1
        signed(make_bundle(models / "tiny" / "3", seed=3))
        while not running.metric("dlen_model_info", version="3") and time.monotonic() < give_up:
            time.sleep(0.05)
        assert running.metric("dlen_model_info", version="3") == 1
    finally:
        assert running.stop() == 0


def test_a_service_with_nothing_signed_does_not_start(tmp_path, trusted, make_bundle):
    make_bundle(tmp_path / "m" / "tiny" / "1")
    fusion = tmp_path / "fusion.yaml"
    fusion.write_text(FUSION)
    words = [sys.executable, "-m", "cli", "serve", "--models", tmp_path / "m", "--fusion", fusion]
    words += ["--port", "0", "--metrics-port", "0", "--trusted-keys-file", trusted]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "manifest.sig: got no such file, want a signature by one of" in done.stderr.splitlines()[-1]


def test_a_version_is_signed_and_verified_by_command(models, trusted, signing, make_bundle, tmp_path, capsys):
    folder, file = make_bundle(models / "tiny" / "2"), tmp_path / "verified.json"
    verify = ["models", "verify", "--models", str(models), "--trusted-keys-file", str(trusted), "--json", str(file)]
    assert main(verify) == 2
    first, second = json.loads(file.read_text())["models"]
    assert (first["problem"], first["signed_by"]) == (None, key_id(OURS.public_key()))
    assert "manifest.sig: got no such file" in second["problem"]
    assert main(["models", "sign", "--bundle", str(folder), "--key", str(signing)]) == 0
    assert main(verify) == 0
    assert f"signed by {key_id(OURS.public_key())}" in capsys.readouterr().out


def test_a_version_that_is_not_whole_is_not_signed(models, signing, make_bundle, capsys):
    folder = make_bundle(models / "tiny" / "2")
    (folder / "model.onnx").write_bytes(b"x")
    assert main(["models", "sign", "--bundle", str(folder), "--key", str(signing)]) == 2
    assert not (folder / "manifest.sig").exists()
