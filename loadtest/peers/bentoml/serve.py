"""The plain export behind BentoML: arrays as JSON, which is how its HTTP API takes them."""

from __future__ import annotations

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Ranker:
    """One session of one thread."""

    def __init__(self) -> None:
        """Load the graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options)

    @bentoml.api
    def predict(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Return p, p_joint and p_up of codes [N, C]."""
        p, p_joint, p_up = self.session.run(None, {"codes": codes.astype(np.int32, copy=False)})
        return {"p": p, "p_joint": p_joint, "p_up": p_up}
