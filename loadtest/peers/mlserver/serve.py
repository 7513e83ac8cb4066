"""The plain export behind MLServer: V2 JSON, or bytes of arrays through a custom handler."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse
from starlette.requests import Request
from starlette.responses import Response


class Ranker(MLModel):
    """One session of one thread."""

    async def load(self) -> bool:
        """Load the graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options)
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
