"""The plain export behind Ray Serve: JSON lists, or bytes of arrays."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import onnxruntime
import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


@serve.deployment(num_replicas=1, logging_config=LoggingConfig(enable_access_log=False))
class Ranker:
    """One session of one thread."""

    def __init__(self) -> None:
        """Load the graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options)

    async def __call__(self, request: Request) -> Response:
        """Return p, p_joint and p_up of codes [N, C]."""
        if request.headers["content-type"] == "application/octet-stream":
            codes = np.frombuffer(await request.body(), dtype=np.int32).reshape(-1, int(os.environ["PEER_CODES"]))
            arrays = self.session.run(None, {"codes": codes})
            return Response(b"".join(array.tobytes() for array in arrays), media_type="application/octet-stream")
        codes = np.array((await request.json())["codes"], dtype=np.int32)
        names, arrays = ("p", "p_joint", "p_up"), self.session.run(None, {"codes": codes})
        return JSONResponse({name: array.tolist() for name, array in zip(names, arrays, strict=True)})


def main() -> None:
    """Serve until told to stop."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ray.init(num_cpus=4, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": int(os.environ["PEER_PORT"])},
            logging_config=LoggingConfig(enable_access_log=False),
        )
        serve.run(Ranker.bind())
        stop.wait()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
