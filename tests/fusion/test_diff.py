"""Comparing two policies on recorded requests, read from a file or scored by a ranker."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from fusion.diff import compare_policies, kendall_tau, write_plot
from fusion.errors import FusionError, RequestsInvalid
from fusion.fuse import compile_policy
from fusion.policies import POLICY
from fusion.recorded import read_requests

TASKS = ["click", "like"]


def scored(seed, count=20):
    random = np.random.default_rng(seed)
    p_NT, p_up_N = random.random((count, 2)), random.random(count)
    return {
        "request_id": f"r{seed}",
        "tasks": TASKS,
        "p": p_NT.tolist(),
        "p_joint": (p_NT * p_up_N[:, None]).tolist(),
        "p_up": p_up_N.tolist(),
        "ids": [str(number) for number in range(count)],
    }


@pytest.fixture
def requests_file(tmp_path):
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(json.dumps(scored(seed)) for seed in range(5)) + "\n")
    return file


def policy(**keys):
    return compile_policy(POLICY.validate_python({"formula": "weighted_sum", **keys}), TASKS, True)


@given(st.permutations(range(12)), st.permutations(range(12)))
@settings(max_examples=50, deadline=None)
def test_kendall_tau_is_scipys(before, after):
    assert kendall_tau(np.array(before), np.array(after)) == pytest.approx(kendalltau(before, after).statistic)


def test_a_policy_against_itself_moves_nothing(requests_file):
    same = policy(weights={"click": 1.0})
    difference = compare_policies(same, same, read_requests(requests_file), 5)
    assert (difference.overlap, difference.same_top, difference.kendall_tau, difference.mean_move) == (1, 1, 1, 0)
    assert all(change.lift == 0 and change.low == 0 for change in difference.tasks.values())


def test_figures_are_those_of_the_slow_loop(requests_file):
    control, treatment = policy(weights={"click": 1.0}, signal="marginal"), policy(weights={"like": 1.0}, p_up=2.0)
    difference = compare_policies(control, treatment, read_requests(requests_file), 5)
    overlaps, ups, clicks = [], [], []
    for seed in range(5):
        request = scored(seed)
        first = sorted(range(20), key=lambda row: -request["p"][row][0])[:5]
        second = sorted(range(20), key=lambda row: -(request["p_joint"][row][1] + 2 * request["p_up"][row]))[:5]
        overlaps.append(len(set(first) & set(second)) / 5)
        ups.append(np.mean([request["p_up"][row] for row in second]))
        clicks.append(sum(request["p"][row][0] for row in first))
    assert difference.overlap == pytest.approx(np.mean(overlaps))
    assert difference.p_up.treatment == pytest.approx(np.mean(ups))
    assert difference.tasks["click"].control == pytest.approx(np.mean(clicks))
    assert difference.tasks["click"].low < difference.tasks["click"].treatment - difference.tasks["click"].control


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".html", b"<!doctype html>")])
def test_the_plot_is_a_picture_or_a_page(requests_file, tmp_path, suffix, start):
    difference = compare_policies(
        policy(weights={"click": 1.0}), policy(weights={"like": 1.0}), read_requests(requests_file)
    )
    file = tmp_path / f"plot{suffix}"
    write_plot(file, difference, "a", "b")
    assert file.read_bytes().startswith(start)
    with pytest.raises(FusionError, match=r"ends in \.png or \.html"):
        write_plot(tmp_path / "plot.svg", difference, "a", "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": None}, "tasks: got None"),
        ({"p": [[0.1]]}, r"p: got shape \[1, 1\], want \[N, 2\]"),
        ({"p": [[0.1, 2.0]]}, r"p: got values outside \[0, 1\]"),
        ({"p": "x"}, "p: got could not convert"),
        ({"p_up": [0.1]}, r"p_up: got shape \[1\], want \[20\]"),
        ({"ids": ["a"]}, "ids: got .* want a list of 20"),
        ({"candidates": []}, "want scores .* or --url"),
    ],
)
def test_a_bad_request_is_refused_with_its_line(tmp_path, change, message):
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(scored(1)) + "\n" + json.dumps({**scored(2), **change}))
    with pytest.raises(RequestsInvalid, match=f"requests.jsonl:2.*{message}"):
        read_requests(file)


def test_files_that_hold_no_requests_are_refused(tmp_path):
    file = tmp_path / "r.jsonl"
    for text, message in (("", "no request"), ("{", "r.jsonl:1"), ("[1]", "got int"), ("3", "got a JSON value")):
        file.write_text(text)
        with pytest.raises(RequestsInvalid, match=message):
            read_requests(file)
    with pytest.raises(RequestsInvalid, match="No such file"):
        read_requests(tmp_path / "none")


@pytest.fixture
def ranker_url():
    """A ranker that gives every candidate P(click) from its id, over real HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            items = [
                {"id": row["id"], "p": {"click": int(row["id"]) / 10}, "p_joint": {"click": 0.0}, "p_up": 0.5}
                for row in reversed(body["candidates"])
            ]
            answer = json.dumps({"items": items} if self.path == "/v1/rank" and items else {"detail": "no"}).encode()
            self.send_response(200 if items else 422)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_rank_requests_are_scored_by_the_ranker_in_candidate_order(tmp_path, ranker_url):
    body = {
        "request_id": "r",
        "user": {"id": "1"},
        "candidates": [
            {"id": "3", "group": "g", "features": {"age": 2, "kind": "a"}},
            {"id": "1", "group": "g", "features": {"age": None, "kind": "b"}},
        ],
    }
    file = tmp_path / "r.json"
    file.write_text(json.dumps(body, indent=1))
    (request,) = read_requests(file, ranker_url)
    assert request.probabilities.p_NT.tolist() == [[0.3], [0.1]]
    assert request.probabilities.p_up_N.tolist() == [0.5, 0.5]
    assert request.candidates.keys["group"] == ["g", "g"]
    assert request.candidates.keys["kind"] == ["a", "b"]
    np.testing.assert_array_equal(request.candidates.attributes["age"], [2.0, np.nan])
    file.write_text(json.dumps({**body, "candidates": []}))
    with pytest.raises(RequestsInvalid, match="status 422: no"):
        read_requests(file, ranker_url)
    with pytest.raises(RequestsInvalid, match="want a running ranker"):
        read_requests(file, "http://127.0.0.1:9")
