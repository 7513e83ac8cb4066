"""The plain export behind LitServe: JSON lists, or bytes of arrays as an uploaded file."""

import os
from typing import Any

import litserve
import numpy as np
import onnxruntime
from fastapi import Request, Response


class Ranker(litserve.LitAPI):
    """One session of one thread."""

    def setup(self, device: str) -> None:
        """Load the graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options)

    def decode_request(self, request: Request) -> tuple[bool, np.ndarray]:
        """Return whether arrays are wanted as bytes, and codes [N, C]; LitServe gives the parsed JSON or form."""
        if "file" in request:
            codes = np.frombuffer(request["file"].file.read(), dtype=np.int32)
            return True, codes.reshape(-1, int(os.environ["PEER_CODES"]))
        return False, np.array(request["codes"], dtype=np.int32)

    def predict(self, given: tuple[bool, np.ndarray]) -> tuple[bool, list[np.ndarray]]:
        """Return p, p_joint and p_up."""
        as_bytes, codes = given
        return as_bytes, self.session.run(None, {"codes": codes})

    def encode_response(self, outputs: tuple[bool, list[np.ndarray]]) -> Any:
        """Return the arrays as bytes one after the other, or as lists."""
        as_bytes, arrays = outputs
        if as_bytes:
            return Response(b"".join(array.tobytes() for array in arrays), media_type="application/octet-stream")
        return {name: array.tolist() for name, array in zip(("p", "p_joint", "p_up"), arrays, strict=True)}


if __name__ == "__main__":
    server = litserve.LitServer(Ranker(), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        num_api_servers=1,
        generate_client_file=False,
        access_log=False,
        log_level="warning",
    )
