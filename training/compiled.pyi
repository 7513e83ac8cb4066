import numpy as np
from numpy.typing import NDArray

def add_rows(table_VD: NDArray[np.float32], rows_N: NDArray[np.int64], values_ND: NDArray[np.float32]) -> None: ...
