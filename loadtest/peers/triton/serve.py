"""The plain export behind Triton's Python backend (nvidia-pytriton): V2 JSON or binary tensors."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    """Serve until told to stop."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options)
    names = ("p", "p_joint", "p_up")

    def infer(requests: list[Any]) -> list[dict[str, np.ndarray]]:
        answers = (session.run(None, {"codes": request.data["codes"]}) for request in requests)
        return [dict(zip(names, arrays, strict=True)) for arrays in answers]

    outputs = [Tensor(name=name, dtype=np.float32, shape=(-1, -1)) for name in names[:2]]
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(os.environ["PEER_PORT"]),
        allow_grpc=False,
        allow_metrics=False,
        http_thread_count=2,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="ranker",
            infer_func=infer,
            inputs=[Tensor(name="codes", dtype=np.int32, shape=(-1, int(os.environ["PEER_CODES"])))],
            outputs=[*outputs, Tensor(name="p_up", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(batching=False),
        )
        triton.serve()


if __name__ == "__main__":
    main()
