import json

import pytest

from cli import main


@pytest.fixture
def request_file(tmp_path):
    path = tmp_path / "request.json"
    path.write_text('{"user": {"id": "1"}, "candidates": []}')
    return path


def test_run_prints_figures_and_writes_json_and_a_picture(server, request_file, tmp_path, capsys):
    code = main(
        ["loadtest", "run", "--url", server[1] + "/slow/40", "--request", str(request_file)]
        + ["--rate", "50", "--duration", "2", "--warmup", "0.2"]
        + ["--json", str(tmp_path / "run.json"), "--plot", str(tmp_path / "run.png")]
    )
    out = capsys.readouterr().out
    document = json.loads((tmp_path / "run.json").read_text())
    assert code == (0 if document["result"]["valid"] else 1)
    assert "latency of 2xx" in out
    assert ("INVALID" in out) == (code == 1)
    assert document["result"]["statuses"] == {"200": document["result"]["planned"]}
    assert document["load"]["rate_per_s"] == 50
    assert {"cores", "pinned_to", "packages"} <= set(document["environment"])
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_good_answer_is_invalid_in_words_code_and_json(server, request_file, tmp_path, capsys):
    code = main(
        ["loadtest", "run", "--url", server[1] + "/status/503", "--request", str(request_file)]
        + ["--rate", "50", "--duration", "0.5", "--warmup", "0", "--json", str(tmp_path / "run.json")]
        + ["--plot", str(tmp_path / "run.png")]
    )
    assert code == 1
    assert "INVALID: no request was answered 2xx" in capsys.readouterr().out
    assert json.loads((tmp_path / "run.json").read_text())["result"]["latency_ms"]["p99"] is None


@pytest.mark.parametrize(
    "options",
    [
        ["--url", "nonsense", "--rate", "1"],
        ["--url", "http://127.0.0.1:1", "--rate", "1"],
        ["--url", "http://127.0.0.1:1", "--rate", "-1"],
    ],
)
def test_bad_input_is_one_line_and_code_2(request_file, capsys, options):
    assert main(["loadtest", "run", "--request", str(request_file), *options]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_sweep_finds_where_the_objective_breaks_and_draws_it(server, request_file, tmp_path, capsys):
    code = main(
        ["loadtest", "sweep", "--url", server[1] + "/slow/20", "--request", str(request_file), "--p99-ms", "200"]
        + ["--connections", "1", "--start", "25", "--limit", "100", "--precision", "1"]
        + ["--duration", "1.5", "--warmup", "0", "--arrivals", "constant"]
        + ["--json", str(tmp_path / "s.json"), "--html", str(tmp_path / "s.html"), "--plot", str(tmp_path / "s.png")]
    )
    document = json.loads((tmp_path / "s.json").read_text())
    assert code == 0
    assert "the objective holds up to" in capsys.readouterr().out
    # one connection and 20 ms a request: 50/s at the very most
    assert 6 <= document["result"]["highest_rate_per_s"] <= 50
    assert len(document["result"]["steps"]) >= 2
    assert b"data:image/png;base64," in (tmp_path / "s.html").read_bytes()
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_compare_tells_a_slow_service_from_a_fast_one_and_from_its_own_baseline(server, request_file, tmp_path, capsys):
    common = ["--request", str(request_file), "--rate", "40", "--duration", "0.25", "--warmup", "0", "--rounds", "6"]
    fast, slow = server[1] + "/slow/5", server[1] + "/slow/60"
    baseline, figures = tmp_path / "baseline.json", tmp_path / "figures.json"
    page = tmp_path / "page.html"
    assert main(["loadtest", "compare", "--url", fast, "--save", str(baseline), *common]) == 0
    assert "no verdict" in capsys.readouterr().out
    worse = ["loadtest", "compare", "--url", slow, "--baseline", str(baseline), "--json", str(figures), *common]
    assert main([*worse, "--html", str(page)]) == 1
    verdicts = {ratio["figure"]: ratio["verdict"] for ratio in json.loads(figures.read_text())["result"]["ratios"]}
    assert verdicts["p50_ms"] == "worse"
    assert b"paired rounds" in page.read_bytes()
    assert main(["loadtest", "compare", "--url", fast, "--against", slow, "--json", str(figures), *common]) == 0
    verdicts = {ratio["figure"]: ratio["verdict"] for ratio in json.loads(figures.read_text())["result"]["ratios"]}
    assert verdicts["p50_ms"] == "better"


def test_a_broken_baseline_is_refused_before_anything_is_sent(request_file, tmp_path, capsys):
    (tmp_path / "baseline.json").write_text("{}")
    options = ["--request", str(request_file), "--rate", "40", "--baseline", str(tmp_path / "baseline.json")]
    assert main(["loadtest", "compare", "--url", "http://127.0.0.1:1", *options]) == 2
    assert "baseline.json" in capsys.readouterr().err
