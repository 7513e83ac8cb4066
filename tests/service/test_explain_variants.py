"""Experiments and explanations as a caller sees them."""

from __future__ import annotations

import pytest

CONFIG = """
format: 1
default: feed
negative_tasks: [hate]
test_users: [tester]
policies:
  feed:
    formula: weighted_sum
    signal: joint
    weights: {click: 1.0, like: 3.0, hate: -2.0}
    p_up: 0.5
    rules:
      - {type: decay, key: group, decay: 0.5, floor: 0.2}
  no_up:
    formula: weighted_sum
    signal: marginal
    weights: {click: 1.0, like: 3.0}
layers:
  - name: ranking
    experiments:
      - name: up_off
        variants:
          - {name: with, weight: 0.5}
          - {name: without, weight: 0.5, policy: no_up}
  - name: late
    experiments:
      - name: evening
        when: {hour: {$gte: 18}}
        variants:
          - {name: same, weight: 0.5}
          - {name: twin, weight: 0.5}
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory, models_folder, start_service):
    folder = tmp_path_factory.mktemp("variants")
    (folder / "fusion.yaml").write_text(CONFIG)
    started = start_service(folder, models_folder, folder / "fusion.yaml")
    yield started
    started.stop()


def by(service, body, user: str, **more) -> dict:
    response = service.rank({**body, "user": {"id": user, "features": body["user"]["features"]}, **more})
    assert response.status_code == 200, response.text
    return response.json()


def test_users_keep_their_variant_and_are_ranked_by_it(service, body):
    variants = {f"user{i}": by(service, body, f"user{i}")["assignments"]["ranking"] for i in range(12)}
    assert set(variants.values()) == {"with", "without"}
    for user, variant in variants.items():
        answer = by(service, body, user)
        assert answer["assignments"]["ranking"] == variant
        top = answer["items"][0]
        marginal = top["p"]["click"] + 3 * top["p"]["like"]
        assert (top["score"] == pytest.approx(marginal, abs=1e-6)) == (variant == "without")


def test_conditions_read_the_context(service, body):
    assert "late" in by(service, body, "u1")["assignments"]
    body["context"]["hour"] = 9
    assert "late" not in by(service, body, "u1")["assignments"]


def test_a_request_without_a_user_is_in_no_experiment(service, body):
    assert by(service, body, "")["assignments"] == {}


def test_test_users_may_force_variants_and_others_may_not(service, body):
    for variant in ("with", "without"):
        assert by(service, body, "tester", force_variant={"ranking": variant})["assignments"]["ranking"] == variant
    for user, force in (("anna", {"ranking": "with"}), ("tester", {"ranking": "none"}), ("tester", {"none": "with"})):
        response = service.rank({**body, "user": {"id": user}, "force_variant": force})
        assert (response.status_code, response.json()["type"]) == (422, "urn:dlen:problem:variant-refused")
        assert response.json()["thing"].startswith("$.force_variant")


def test_exposures_are_counted_once_per_ranked_request(service, body):
    labels = {"layer": "ranking", "experiment": "up_off"}
    before = service.metric("dlen_rank_exposures_total", **labels)
    for number in range(5):
        by(service, body, f"user{number}")
    service.rank({**body, "candidates": [{"id": 1}]})
    assert service.metric("dlen_rank_exposures_total", **labels) == before + 5


def test_an_explanation_gives_score_and_position_exactly_and_changes_neither(service, body):
    for candidate in body["candidates"][:4]:
        candidate["group"] = "g"
    plain, explained = (
        by(service, body, "tester", force_variant={"ranking": "with"}, explain=explain)["items"]
        for explain in (False, True)
    )
    assert [(i["id"], i["score"], i["p"]) for i in plain] == [(i["id"], i["score"], i["p"]) for i in explained]
    decayed = 0
    for position, item in enumerate(explained, start=1):
        why = item["explanation"]
        total = 0.0
        for term in why["terms"]:
            total += term["value"]
        score = why["fused"]
        for multiplier in why["multipliers"]:
            score *= multiplier["factor"]
            decayed += 1
        assert (total, score, position) == (why["total"], item["score"], why["position"])
        assert why["fused_position"] + sum((m["to"] or 0) - m["from"] for m in why["moves"]) == position
    assert decayed == 3
