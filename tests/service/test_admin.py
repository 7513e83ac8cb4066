"""Admin keys, roll-back by call and by command, forced variants: two workers, one state folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cli import main
from service.errors import SettingsInvalid
from service.keys import Keys

OLD_KEY, NEW_KEY = "old-key-0123456789", "new-key-0123456789"
CONFIG = """
format: 1
default: feed
policies:
  feed: {formula: weighted_sum, weights: {click: 1.0, like: 3.0}, p_up: 0.5}
  other: {formula: weighted_sum, weights: {like: 1.0}}
layers:
  - name: ranking
    experiments:
      - name: e
        variants: [{name: a, weight: 0.5}, {name: b, weight: 0.5, policy: other}]
"""


class Steered:
    """A service with two workers, and a connection to each."""

    def __init__(self, service, folder: Path) -> None:
        self.service, self.fusion, self.state, self.keys = service, *(folder / n for n in ("f.yaml", "state", "keys"))
        self.clients: dict[int, httpx.Client] = {}
        give_up = time.monotonic() + 30
        while len(self.clients) < 2 and time.monotonic() < give_up:
            client = httpx.Client(base_url=service.url, timeout=10)
            if self.clients.setdefault(client.get("/v1/config").json()["pid"], client) is not client:
                client.close()
        assert len(self.clients) == 2

    def versions(self) -> set[str]:
        return {client.get("/v1/config").json()["version"] for client in self.clients.values()}

    def wait_until(self, met: Callable[[set[str]], bool]) -> str:
        """Wait until both workers serve one version that will do; return it."""
        give_up = time.monotonic() + 10
        while not (len(found := self.versions()) == 1 and met(found)):
            assert time.monotonic() < give_up, found
            time.sleep(0.01)
        return found.pop()

    def rankings(self, body: dict) -> set[bytes]:
        """The bytes that the workers answer."""
        return {client.post("/v1/rank", json=body).content for client in self.clients.values()}

    def admin(self, path: str, body: dict | None = None, key: str | None = OLD_KEY) -> httpx.Response:
        headers = {} if key is None else {"X-Admin-Key": key}
        method = "GET" if path == "history" else "POST"
        return self.service.client.request(
            method, f"{self.service.url}/admin/config/{path}", headers=headers, json=body
        )

    def audit(self) -> list[dict]:
        return [json.loads(line) for line in (self.state / "audit.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def steered(tmp_path_factory, models_folder, start_service) -> Iterator[Steered]:
    folder = tmp_path_factory.mktemp("steered")
    (folder / "f.yaml").write_text(CONFIG)
    (folder / "keys").write_text(f"# until March\n{OLD_KEY}\n\n{NEW_KEY}\n")
    service = start_service(
        folder, models_folder, folder / "f.yaml", "--workers", "2", DLEN_FUSION_STATE=str(folder / "state"),
        DLEN_ADMIN_KEYS_FILE=str(folder / "keys"), DLEN_DRAIN_SECONDS="0", DLEN_QUEUE_MS="10000",
    )  # fmt: skip
    made = Steered(service, folder)
    yield made
    for client in made.clients.values():
        client.close()
    service.stop()


def change(steered: Steered, text: str) -> str:
    """Write another config and wait for it; return its version."""
    before = steered.versions()
    steered.fusion.write_text(text)
    return steered.wait_until(lambda now: now != before)


@pytest.mark.parametrize("by", ["call", "command"])
def test_a_roll_back_restores_the_ranking_to_the_byte_in_every_worker(steered, body, by):
    body["user"]["id"] = ""
    first = steered.versions().pop()
    before = steered.rankings(body)
    second = change(steered, CONFIG.replace("like: 3.0", "like: 0.1" if by == "call" else "like: 0.2"))
    assert len(before) == 1 and not before & steered.rankings(body)
    if by == "call":
        answer = steered.admin("rollback", {"version": first[7:20], "by": "anna"})
        assert (answer.status_code, answer.json()["pinned"]) == (200, first)
    else:
        assert main(["fusion", "rollback", "--state", str(steered.state), "--to", first[:20]]) == 0
    steered.wait_until(lambda now: now == {first})
    assert steered.rankings(body) == before
    steered.fusion.write_text(CONFIG.replace("like: 3.0", "like: 9.0"))
    time.sleep(0.6)
    assert steered.versions() == {first}
    steered.fusion.write_text(CONFIG.replace("like: 3.0", "like: 0.1" if by == "call" else "like: 0.2"))
    if by == "call":
        assert steered.admin("unpin", {"by": "anna"}).json()["pinned"] is None
    else:
        assert main(["fusion", "rollback", "--state", str(steered.state), "--clear"]) == 0
    steered.wait_until(lambda now: now == {second})
    change(steered, CONFIG)
    events = [line for line in steered.audit() if line["event"] != "activated"][-2:]
    assert [(line["event"], line["version"]) for line in events] == [("pinned", first), ("unpinned", first)]
    assert all(line["by"].startswith("admin:anna" if by == "call" else "command:") for line in events)


def test_every_version_that_serves_is_in_the_history_and_both_workers_note_it(steered):
    version = change(steered, CONFIG.replace("like: 3.0", "like: 5.0"))
    give_up = time.monotonic() + 10
    pids: set[int] = set()
    while pids != set(steered.clients) and time.monotonic() < give_up:
        pids = {line["pid"] for line in steered.audit() if line["version"] == version and "previous" in line}
    assert pids == set(steered.clients)
    answer = steered.admin("history").json()
    assert (answer["serving"], answer["pinned"], answer["versions"][0]["version"]) == (version, None, version)
    change(steered, CONFIG)


@pytest.mark.parametrize("key", [None, "", "wrong-key-0123456789", OLD_KEY[:-1], OLD_KEY.upper()])
def test_without_a_key_nothing_is_told_or_done(steered, key):
    done = [line for line in steered.audit() if line["event"] != "activated"]  # a worker may still be following
    for path, body in (("history", None), ("rollback", {"version": "a"}), ("unpin", {}), ("unpin", {"bad": 1})):
        answer = steered.admin(path, body, key=key)
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:dlen:problem:admin-refused")
    assert [line for line in steered.audit() if line["event"] != "activated"] == done


def test_bad_admin_bodies_and_versions_are_refused(steered):
    for body in ({}, {"version": 1}, {"version": "a", "noise": 1}, {"version": "x" * 99}):
        answer = steered.admin("rollback", body)
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:dlen:problem:body-malformed")
    answer = steered.admin("rollback", {"version": "ffff" * 5})
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:dlen:problem:version-unknown")
    assert steered.admin("rollback", {"version": "x", "by": "y" * 5000}).status_code == 413


def test_a_version_that_the_model_does_not_know_is_not_pinned(steered):
    from fusion.history import History

    unfit = History(steered.state).record({"f.yaml": CONFIG.replace("click: 1.0", "clicks: 1.0").encode()})
    answer = steered.admin("rollback", {"version": unfit})
    assert (answer.status_code, "clicks" in answer.json()["thing"]) == (409, True)
    assert steered.admin("history").json()["pinned"] is None


def test_keys_rotate_without_a_restart(steered):
    assert {steered.admin("history", key=key).status_code for key in (OLD_KEY, NEW_KEY)} == {200}
    text = steered.keys.read_text()
    steered.keys.write_text(f"{NEW_KEY}\n")
    assert [steered.admin("history", key=key).status_code for key in (OLD_KEY, NEW_KEY)] == [403, 200]
    steered.keys.unlink()
    assert steered.admin("history", key=NEW_KEY).status_code == 403
    steered.keys.write_text(text)


def test_holders_of_a_key_force_variants_for_anybody_by_field_or_header(steered, body):
    service = steered.service
    body["user"]["id"] = "anna"
    for variant in ("a", "b"):
        by_field = service.rank({**body, "force_variant": {"ranking": variant}}, **{"X-Admin-Key": OLD_KEY})
        by_header = service.rank(body, **{"X-Admin-Key": NEW_KEY, "X-Force-Variant": f"ranking={variant}"})
        assert by_field.json()["assignments"] == by_header.json()["assignments"] == {"ranking": variant}
    inputs = [{"name": "candidates.id", "datatype": "BYTES", "shape": [2], "data": ["c1", "c2"]}]
    answer = service.client.post(
        f"{service.url}/v2/models/tiny/infer",
        json={"inputs": inputs, "parameters": {"user_id": "anna"}},
        headers={"X-Admin-Key": NEW_KEY, "X-Force-Variant": "ranking=b"},
    )
    assert answer.json()["parameters"]["variant.ranking"] == "b"
    for headers in ({}, {"X-Admin-Key": "wrong-key-0123456789"}):
        refused = service.rank(body, **headers, **{"X-Force-Variant": "ranking=a"})
        assert (refused.status_code, refused.json()["type"]) == (422, "urn:dlen:problem:variant-refused")
    for header in ("ranking", "=a", "ranking=", "ranking=a,ranking=b", "ranking=a,,"):
        refused = service.rank(body, **{"X-Admin-Key": OLD_KEY, "X-Force-Variant": header})
        assert (refused.status_code, refused.json()["type"]) == (400, "urn:dlen:problem:header-invalid")


def test_each_ranked_request_logs_its_exposures_once(steered, body):
    service = steered.service
    labels = {"layer": "ranking", "experiment": "e", "phase": "1"}
    before = service.metric("dlen_rank_exposures_total", **labels, forced="true")
    for number in range(8):
        service.rank({**body, "request_id": f"seen-{number}", "user": {"id": f"u{number}"}, "explain": number > 5})
    forced = {"request_id": "seen-forced", "force_variant": {"ranking": "b"}}
    service.rank({**body, **forced}, **{"X-Admin-Key": OLD_KEY})
    service.rank({**body, "request_id": "seen-nobody", "user": {"id": ""}})
    service.rank({**body, "request_id": "seen-bad", "candidates": [{"id": 1}]})
    service.lines("service.exposures", wanted=1, request_id="seen-forced")
    lines = [line for line in service.lines("service.exposures") if line["request_id"].startswith("seen-")]
    assert sorted(line["request_id"] for line in lines) == [*(f"seen-{n}" for n in range(8)), "seen-forced"]
    last = next(line for line in lines if line["request_id"] == "seen-forced")
    assert last["exposures"] == [{"layer": "ranking", "experiment": "e", "phase": 1, "variant": "b", "forced": True}]
    assert (last["user_id"], last["model"], last["config_version"]) == ("u1", "tiny", steered.versions().pop())
    assert service.metric("dlen_rank_exposures_total", **labels, forced="true") == before + 1


def test_keys_are_never_logged(steered):
    text = steered.service.log.read_text() + (steered.state / "audit.jsonl").read_text()
    assert OLD_KEY not in text and NEW_KEY not in text and "wrong-key" not in text


def test_admin_routes_are_off_by_default(running):
    for path in ("history", "rollback", "unpin"):
        assert running.client.post(f"{running.url}/admin/config/{path}").status_code == 404
    assert "/admin" not in running.get("/openapi.json").text


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        (b"", "no key"),
        (b"# none\n", "no key"),
        (b"secret\n", "line 1"),
        (b"\xff", "no ASCII text"),
    ],
)
def test_a_key_file_without_keys_is_refused_without_telling_what_it_holds(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(SettingsInvalid, match=complaint) as caught:
        Keys("admin_keys_file", tmp_path / "keys").check()
    assert "secret" not in str(caught.value)
    assert not Keys("admin_keys_file", tmp_path / "keys").holds("secret")
    assert not Keys("admin_keys_file", None).holds("")
