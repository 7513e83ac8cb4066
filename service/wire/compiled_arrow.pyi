import numpy as np
from numpy.typing import NDArray

def read_stream(
    body: bytes, key: bytes, most: int
) -> (
    tuple[bytes | None, list[tuple[str, NDArray[np.generic] | list[str | None], NDArray[np.bool_] | None, int]]] | None
): ...
def join_texts(texts: list[str], order_K: NDArray[np.int64]) -> tuple[bytes, NDArray[np.int32]] | None: ...
