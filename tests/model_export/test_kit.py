import json

import numpy as np
import pytest

from bundle.encode import SchemaEncoder
from bundle.features import FeatureSchema
from model_export import kit
from service.ranker import typed
from service.wire.encodings import ENCODINGS, JSON


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(kit, "ITEMS", 40)
    monkeypatch.setattr(kit, "USERS", 5)
    return kit.make_world()


@pytest.fixture
def schema(world):
    encoding = {"type": "hash", "buckets": 20_000}
    features = [
        {"name": name, "side": side, "kind": "categorical", "value_type": "integer", "encoding": encoding}
        for side in kit.FEATURES
        for name in world.names(side)
    ]
    return FeatureSchema.model_validate({"features": features})


def test_every_encoding_of_a_request_is_the_same_request_and_encodes_to_the_peers_input(
    world, schema, tmp_path, monkeypatch
):
    class Session:
        def run(self, names, inputs):
            return [np.zeros((7, 5), np.float32)]

    monkeypatch.setattr(kit, "open_session", lambda path: Session())
    picks = [(3, np.arange(7) * 5), (1, np.arange(7))]
    ids = [f"i{row}" for row in range(kit.ITEMS)]
    kit._write_requests(tmp_path, 7, [kit._body(world, ids, k, *pick) for k, pick in enumerate(picks)])
    kit._write_inputs(tmp_path, schema, 7, world, picks)
    codes = np.load(tmp_path / "inputs-7.npz")["codes"]
    encoder = SchemaEncoder(schema)
    for number in range(2):
        bodies = [(ENCODINGS[JSON], (tmp_path / f"{kind}-7.jsonl").read_bytes().splitlines()[number])
                  for kind in ("rows", "columns")]  # fmt: skip
        arrow = ENCODINGS["application/vnd.apache.arrow.stream"]
        for encoding, body in (*bodies, (arrow, (tmp_path / f"arrow-7-{number}.arrow").read_bytes())):
            request = encoding.parse(body, 100, "")
            user = encoder.request.encode(typed(encoder.request, request.user), 1).codes_NC
            items = encoder.item.encode(typed(encoder.item, request.items), 7).codes_NC
            assert (codes[number] == np.concatenate([np.repeat(user, 7, axis=0), items], axis=1)).all()
        only_ids = json.loads((tmp_path / "ids-7.jsonl").read_bytes().splitlines()[number])
        assert only_ids["candidates"] == {"id": list(request.ids)}
