"""Exploration as it is logged: who was drawn, where, and with which propensity."""

from __future__ import annotations

import json
import logging
import time

import orjson
import pytest
from prometheus_client import CollectorRegistry

from service.admission import Deadline
from service.metrics import Metrics
from service.ranker import Ranker
from service.reload import Reloader
from service.settings import Settings
from service.snapshot import Serving
from service.wire.encodings import parse_json


def ranked(rules, models_folder, folder, body):
    """Return a ranker and its ranking under one policy with the given rules."""
    policy = {"formula": "weighted_sum", "weights": {"click": 1.0}, "rules": rules}
    (folder / "fusion.yaml").write_text(json.dumps({"format": 1, "default": "feed", "policies": {"feed": policy}}))
    serving, metrics = Serving(), Metrics(CollectorRegistry())
    Reloader(Settings(models=models_folder, fusion=folder / "fusion.yaml"), metrics, serving).load()
    ranker = Ranker(metrics)
    request = parse_json(orjson.dumps(body), 100, "r")
    return ranker, ranker.rank(request, serving.choose(None), Deadline(time.monotonic() + 1e6, 1))


def logged(ranker, ranking, caplog):
    with caplog.at_level(logging.INFO, "service.exposures"):
        ranker.note(ranking)
    return [record.fields for record in caplog.records if record.name == "service.exposures"]


def test_a_draw_is_logged_with_position_and_propensity(models_folder, tmp_path, body, caplog):
    rule = {"type": "explore", "positions": [2], "rate": 0.5, "pool": 4}
    ranker, ranking = ranked([rule], models_folder, tmp_path, {**body, "explain": True})
    (line,) = logged(ranker, ranking, caplog)
    order = ranking.ranked.order_K.tolist()
    assert ranking.explanation is not None
    explained = ranking.explanation.items(order)[1]
    second = {"id": ranking.request.ids[order[1]], "position": 2, "propensity": explained["propensity"]}
    assert line["explored"] == [second]
    pool = min(4, len(order))
    assert explained["propensity"] == pytest.approx(0.5 / (pool - 1) + 0.5 * (order[1] == undrawn(ranking)))


def undrawn(ranking):
    """Return the candidate that scores second, who stands at position 2 without a draw."""
    return sorted(range(len(ranking.ranked.score_N)), key=lambda row: -ranking.ranked.score_N[row])[1]


def test_nothing_is_logged_without_variants_or_draws(models_folder, tmp_path, body, caplog):
    ranker, ranking = ranked([], models_folder, tmp_path, body)
    assert logged(ranker, ranking, caplog) == []
