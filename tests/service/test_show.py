"""`dlen rank` and `dlen models list` as a person sees them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cli import main


@pytest.fixture
def request_file(tmp_path, body):
    file = tmp_path / "request.json"
    file.write_text(json.dumps(body))
    return file


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_the_ordered_feed_is_printed_with_every_score(running, request_file, tmp_path, capsys, wide):
    file = tmp_path / "answer.json"
    assert main(["rank", "--url", running.url, "--request", str(request_file), "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    for column in ("#", "id", "score", "P(UP)", "click", "like", "hate", "P(task, UP)"):
        assert column in shown
    rows = [line.split("│")[1:-1] for line in shown.splitlines() if line.startswith("│")]
    answer = json.loads(file.read_text())
    assert [row[1].strip() for row in rows] == [item["id"] for item in answer["items"]]
    assert [row[0].strip() for row in rows] == ["1", "2", "3", "4", "5"]
    assert float(rows[0][3]) == pytest.approx(answer["items"][0]["p_up"], abs=1e-4)


def test_explain_prints_the_terms_of_each_score(running, request_file, capsys, wide):
    assert main(["rank", "--url", running.url, "--request", str(request_file), "--explain", "--top", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Why each candidate stands where it does" in shown and "total → score" in shown


def test_a_refusal_is_one_clear_line(running, tmp_path, body, capsys):
    body["candidates"][0]["features"]["autor"] = 1
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(body))
    assert main(["rank", "--url", running.url, "--request", str(file)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "status 422" in line and "feature 'autor'" in line


@pytest.mark.parametrize(
    ("text", "expected"), [(None, "No such file"), ("{", "want JSON"), ("[]", "got list, want an object")]
)
def test_a_request_file_that_does_not_read_is_named(running, tmp_path, capsys, text, expected):
    file = tmp_path / "request.json"
    if text is not None:
        file.write_text(text)
    assert main(["rank", "--url", running.url, "--request", str(file)]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1", "http://[", "ftp://127.0.0.1"])
def test_a_server_that_cannot_be_reached_is_one_clear_line(request_file, capsys, url):
    assert main(["rank", "--url", url, "--request", str(request_file)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("dlen: error: ") and url in line


@pytest.mark.parametrize(("status", "content"), [(200, b"<html>"), (200, b"{}"), (502, b"bad gateway"), (500, b"[]")])
def test_another_server_is_not_taken_for_a_ranker(request_file, capsys, status, content):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert main(["rank", "--url", url, "--request", str(request_file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_models_are_listed_with_what_is_wrong_with_them(tmp_path, make_bundle, capsys, wide):
    make_bundle(tmp_path / "models" / "tiny" / "1")
    assert main(["models", "list", "--models", str(tmp_path / "models")]) == 0
    broken = make_bundle(tmp_path / "models" / "tiny" / "2")
    (broken / "model.onnx").write_bytes(b"x")
    file = tmp_path / "list.json"
    assert main(["models", "list", "--models", str(tmp_path / "models"), "--json", str(file)]) == 2
    shown = capsys.readouterr().out
    assert "dlen-tiny" in shown and "whole" in shown and "broken" in shown
    assert "model.onnx: got 1 bytes" in shown
    good, bad = json.loads(file.read_text())["models"]
    assert (good["problem"], good["tasks"]) == (None, ["click", "like", "hate"])
    assert "model.onnx: got 1 bytes" in bad["problem"]


def test_a_missing_models_folder_is_named(capsys):
    assert main(["models", "list", "--models", "nowhere"]) == 2
    assert "nowhere: got no such folder" in capsys.readouterr().err
