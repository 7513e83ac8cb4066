from __future__ import annotations

import shutil

import pytest

from bundle.errors import FileDigest
from bundle.manifest import MODEL_FILE
from bundle.read import read_bundle
from cli import main
from model_export import parity
from model_export.errors import OutputInvalid, ParityFailed
from model_export.parity import network_outputs, open_session, run_graph
from model_export.write import export_run
from training.calibrate import FEWEST, fit_calibrations
from training.run import read_run


def test_bundle_names_its_tensors_tasks_and_parity(models):
    manifest = read_bundle(models / "demo" / "1").manifest
    assert manifest.task_names == ("click", "like", "follow", "comment", "forward")
    assert [tensor.name for tensor in manifest.outputs] == ["p", "p_joint", "p_up"]
    assert manifest.parity.max_abs_error <= 1e-5
    assert manifest.parity.rows >= 4 * (1 + 2 + 500)
    assert all(task.alpha == pytest.approx(0.3 * task.base_rate, rel=1e-5) for task in manifest.tasks)


def test_golden_request_replays_within_tolerance(models):
    from bundle.golden import check_replay

    bundle = read_bundle(models / "demo" / "1")
    outputs = run_graph(open_session(bundle.model_path), bundle.golden.inputs)
    check_replay(bundle.golden, outputs, bundle.manifest.parity.tolerance)


@pytest.mark.parametrize("name", ["model.onnx", "model.weights", "features.json", "golden.npz"])
def test_one_flipped_byte_is_refused_by_name(models, tmp_path, name):
    folder = tmp_path / "1"
    shutil.copytree(models / "demo" / "1", folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(FileDigest, match=name):
        read_bundle(folder)


def test_an_existing_version_is_never_overwritten(models, trained):
    before = (models / "demo" / "1" / MODEL_FILE).read_bytes()
    with pytest.raises(OutputInvalid, match="existing version"):
        export_run(trained, models / "demo" / "1")
    assert (models / "demo" / "1" / MODEL_FILE).read_bytes() == before


@pytest.mark.parametrize("version", ["latest", "0", "01", "-1", "١"])
def test_a_version_is_a_whole_number_from_one(trained, tmp_path, version):
    with pytest.raises(OutputInvalid, match="version"):
        export_run(trained, tmp_path / "demo" / version)


def test_a_graph_that_strays_from_the_network_is_not_written(trained, tmp_path, monkeypatch):
    honest = parity.run_graph

    def strayed(session, inputs):
        outputs = honest(session, inputs)
        return outputs | {"p": outputs["p"] + 1e-4}

    monkeypatch.setattr(parity, "run_graph", strayed)
    with pytest.raises(ParityFailed, match="off by 0.0001"):
        export_run(trained, tmp_path / "demo" / "1")
    assert list((tmp_path / "demo").iterdir()) == []


def test_exporting_an_unfinished_run_is_one_line_and_exit_code_2(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "result.json").unlink()
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "m" / "1")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "unfinished run" in error
    assert not (tmp_path / "m").exists()


def test_a_bundle_is_signed_as_the_version_it_becomes(trained, tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from bundle.signature import TrustedKeys, key_id

    key, file, out = Ed25519PrivateKey.generate(), tmp_path / "signing.pem", tmp_path / "demo" / "3"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert main(["export", "--run", str(trained), "--out", str(out), "--sign-key", str(file)]) == 0
    mine = key_id(key.public_key())
    assert read_bundle(out, TrustedKeys({mine: key.public_key()})).signed_by == mine


def test_a_key_that_does_not_sign_is_named_before_anything_is_written(trained, tmp_path, capsys):
    out = tmp_path / "demo" / "3"
    words = ["export", "--run", str(trained), "--out", str(out), "--sign-key", str(tmp_path / "none.pem")]
    assert main(words) == 2
    assert "none.pem: got No such file" in capsys.readouterr().err
    assert not out.parent.exists()


def test_run_and_bundle_evaluate_to_the_same_figures(trained, models, prepared, tmp_path):
    import json

    for flag, what in (("--run", trained), ("--bundle", models / "demo" / "1")):
        out = tmp_path / f"{flag}.json"
        assert main(["evaluate", flag, str(what), "--data", str(prepared), "--json", str(out)]) == 0
    by_run, by_bundle = (json.loads((tmp_path / f"{flag}.json").read_text()) for flag in ("--run", "--bundle"))
    assert by_run["rows"] == by_bundle["rows"]
    for task, figures in by_run["tasks"].items():
        for name, value in figures.items():
            ranks = name in ("auc", "gauc")  # two scores that float32 cannot tell apart may change places
            assert by_bundle["tasks"][task][name] == pytest.approx(value, abs=2e-3 if ranks else 1e-5)


def test_tasks_with_enough_rows_are_calibrated_on_the_sample_of_the_graph_that_serves(models, trained):
    rows = parity.sample_rows(read_run(trained))
    manifest = read_bundle(models / "demo" / "1").manifest
    for task, labels in zip(manifest.tasks, rows.labels.T, strict=True):
        enough = min(labels.sum(), len(labels) - labels.sum()) >= FEWEST
        assert (task.calibration is not None) == enough
    p = network_outputs(read_run(trained).trained_network(), *rows.batch(0, len(rows.codes)))["p"]
    assert [task.calibration for task in manifest.tasks] == fit_calibrations(p, rows.labels)
    assert manifest.tasks[0].calibration is not None


def test_the_manifest_tells_where_the_samples_predictions_lie(models, trained):
    rows = parity.sample_rows(read_run(trained))
    p_BT = network_outputs(read_run(trained).trained_network(), *rows.batch(0, len(rows.codes)))["p"]
    for task, p_B in zip(read_bundle(models / "demo" / "1").manifest.tasks, p_BT.T, strict=True):
        assert task.reference_shares is not None and sum(task.reference_shares) == pytest.approx(1, abs=1e-5)
        assert task.reference_shares[-1] == pytest.approx((p_B > 0.9).mean(), abs=1e-6)


def test_chains_behind_habit_towers_are_exported_within_tolerance(nested, tmp_path):
    within = "within={like: click, follow: click}"
    small = ["expert_hidden=[8]", "latent_hidden=[8]", "epochs=1", "habit_towers=true", within]
    settings = [argument for one in small for argument in ("--set", one)]
    run, out = tmp_path / "run", tmp_path / "m" / "1"
    assert main(["train", "--data", str(nested), "--model", "dlen-ple", "--out", str(run), *settings]) == 0
    bundle = export_run(run, out)
    assert bundle.manifest.parity.max_abs_error <= 1e-5
    golden = bundle.golden.outputs
    shares = golden["p_joint"] / golden["p_up"][:, None]  # P(task|UP), which no item changes
    assert shares.std(axis=0).max() < 1e-5 < golden["p_up"].std()
