"""The plain export behind MLServer: V2 JSON, bytes of arrays through a custom handler, or the whole job through one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import orjson
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse
from starlette.requests import Request
from starlette.responses import Response

sys.path.append(str(Path(__file__).parents[3]))
from bundle.encode import SchemaEncoder
from bundle.features import read_schema

KIT = Path(os.environ["PEER_KIT"])


class Ranker(MLModel):
    """One session of one thread."""

    async def load(self) -> bool:
        """Load the graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options)
        self.encoder = SchemaEncoder(read_schema(KIT / "run" / "features.json"))
        kit = orjson.loads((KIT / "kit.json").read_bytes())
        self.tasks, self.p_up_weight = kit["tasks"], kit["p_up"]
        self.weights = np.array([kit["weights"][task] for task in self.tasks])
        self.negative = np.array([task in kit["negative_tasks"] for task in self.tasks])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return p, p_joint and p_up of codes [N, C]."""
        codes = NumpyCodec.decode_input(payload.inputs[0])
        arrays = zip(("p", "p_joint", "p_up"), self.session.run(None, {"codes": codes}), strict=True)
        outputs = [NumpyCodec.encode_output(name, array) for name, array in arrays]
        return InferenceResponse(model_name=self.name, outputs=outputs)

    @custom_handler(rest_path="/bytes")
    async def predict_bytes(self, request: Request) -> Response:
        """Return the arrays' bytes one after the other."""
        codes = np.frombuffer(await request.body(), dtype=np.int32).reshape(-1, int(os.environ["PEER_CODES"]))
        arrays = self.session.run(None, {"codes": codes})
        return Response(b"".join(array.tobytes() for array in arrays), media_type="application/octet-stream")

    @custom_handler(rest_path="/rank")
    async def rank(self, request: Request) -> Response:
        """Do all that the ranker does for the kit's policy: raw features in, the ordered feed out."""
        body = orjson.loads(await request.body())
        candidates = body["candidates"]
        rows = [candidate["features"] for candidate in candidates]
        user = self.encoder.request.encode_row(body["user"]["features"])
        item = self.encoder.item
        columns = item.columns_from_python({name: [row[name] for row in rows] for name in rows[0]})
        codes = np.empty((len(rows), int(os.environ["PEER_CODES"])), dtype=np.int32)
        split = user.codes_NC.shape[1]
        codes[:, :split], codes[:, split:] = user.codes_NC, item.encode(columns, len(rows)).codes_NC
        p, p_joint, p_up = self.session.run(None, {"codes": codes})
        scores = np.where(self.negative, p, p_joint) @ self.weights + self.p_up_weight * p_up.ravel()
        ups, joints, alone = p_up.ravel().tolist(), p_joint.tolist(), p.tolist()
        items = [
            {
                "id": candidates[at]["id"],
                "score": scores[at].item(),
                "p_up": ups[at],
                "p_joint": dict(zip(self.tasks, joints[at], strict=True)),
                "p": dict(zip(self.tasks, alone[at], strict=True)),
            }
            for at in np.argsort(-scores, kind="stable").tolist()
        ]
        answer = {"request_id": body["request_id"], "model": "dlen", "items": items}
        return Response(orjson.dumps(answer), media_type="application/json")
