"""Two policies on the same recorded requests: what would move, before any user sees it.

Expectations are the model's own (Σ P(task) of the top positions), not outcomes. Shapes: N candidates of a request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.errors import FusionError
from fusion.fuse import CompiledPolicy
from fusion.history import write_aside
from fusion.recorded import Recorded

Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Change:
    """A mean over requests under both policies.

    Attributes:
        control: mean under the control policy.
        treatment: mean under the treatment policy.
        low, high: 95 % interval of the paired difference over requests (normal approximation); None for one request.
    """

    control: float
    treatment: float
    low: float | None
    high: float | None

    @property
    def lift(self) -> float | None:
        """Relative difference, None where the control is 0."""
        return self.treatment / self.control - 1 if self.control else None

    @property
    def lift_interval(self) -> tuple[float, float] | None:
        """The interval relative to the control's mean, which is taken as given; None where there is none."""
        if self.low is None or self.high is None or not self.control:
            return None
        return self.low / self.control, self.high / self.control


@dataclass(frozen=True)
class Difference:
    """What moves between two policies.

    Attributes:
        requests, candidates: how many were compared.
        top_k: positions that count as the top.
        overlap: mean share of the top that both have.
        same_top: share of requests whose top is the same in the same order.
        kendall_tau: mean over requests, of the candidates that both orders hold; 1 = same order.
        mean_move: mean absolute change of position.
        moves: per request and candidate in both orders, the change of position.
        tasks: expected number of each task's actions in the top positions.
        p_up: mean P(UP) in the top positions; None without a latent.
    """

    requests: int
    candidates: int
    top_k: int
    overlap: float
    same_top: float
    kendall_tau: float
    mean_move: float
    moves: Ints
    tasks: Mapping[str, Change]
    p_up: Change | None

    def to_json(self) -> dict[str, Any]:
        """Return everything but the single moves as plain data."""
        names = ("requests", "candidates", "top_k", "overlap", "same_top", "kendall_tau", "mean_move")
        plain: dict[str, Any] = {name: getattr(self, name) for name in names}
        plain["tasks"] = {task: {**asdict(change), "lift": change.lift} for task, change in self.tasks.items()}
        plain["p_up"] = None if self.p_up is None else {**asdict(self.p_up), "lift": self.p_up.lift}
        return plain


def compare_policies(
    control: CompiledPolicy, treatment: CompiledPolicy, requests: Sequence[Recorded], top_k: int = 10
) -> Difference:
    """Return what moves between two policies on the requests (at least one).

    Raises:
        InputInvalid: a request does not fit a policy.
    """
    overlaps, same, taus, moves = [], [], [], []
    sums: dict[str, list[tuple[float, float]]] = {task: [] for task in requests[0].tasks}
    ups: list[tuple[float, float]] = []
    for request in requests:
        whole = control.rank(request.probabilities, None, request.candidates).order_K
        other = treatment.rank(request.probabilities, None, request.candidates).order_K
        first, second = whole[:top_k], other[:top_k]
        overlaps.append(len(np.intersect1d(first, second)) / max(1, min(top_k, len(request.probabilities.p_NT))))
        same.append(np.array_equal(first, second))
        before, after = _places(whole, other, len(request.probabilities.p_NT))
        taus.append(kendall_tau(before, after))
        moves.append(after - before)
        for column, task in enumerate(request.tasks):
            p_N = request.probabilities.p_NT[:, column]
            sums[task].append((float(p_N[first].sum()), float(p_N[second].sum())))
        p_up_N = request.probabilities.p_up_N
        if p_up_N is not None and len(first) and len(second):
            ups.append((float(p_up_N[first].mean()), float(p_up_N[second].mean())))
    every_move = np.concatenate(moves)
    return Difference(
        requests=len(requests),
        candidates=sum(len(request.probabilities.p_NT) for request in requests),
        top_k=top_k,
        overlap=float(np.mean(overlaps)),
        same_top=float(np.mean(same)),
        kendall_tau=float(np.mean(taus)),
        mean_move=float(np.abs(every_move).mean()) if len(every_move) else 0.0,
        moves=every_move,
        tasks={task: _change(pairs) for task, pairs in sums.items()},
        p_up=_change(ups) if ups else None,
    )


def _places(first: Ints, second: Ints, count: int) -> tuple[Ints, Ints]:
    """Return both positions of every candidate that is in both orders."""
    places = np.full((2, count), -1, dtype=np.intp)
    for row, order in enumerate((first, second)):
        places[row, order] = np.arange(len(order))
    both = (places >= 0).all(axis=0)
    return places[0, both], places[1, both]


def kendall_tau(before: Ints, after: Ints) -> float:
    """Return Kendall's τ of two orders without ties; 1 where there are fewer than two candidates."""
    count = len(before)
    if count < 2:
        return 1.0
    sequence = after[np.argsort(before)]
    inversions = int(np.triu(sequence[:, None] > sequence[None, :], k=1).sum())
    return 1.0 - 4.0 * inversions / (count * (count - 1))


def _change(pairs: Sequence[tuple[float, float]]) -> Change:
    array = np.array(pairs)
    control, treatment = array.mean(axis=0).tolist()
    if len(array) < 2:
        return Change(control, treatment, None, None)
    difference = array[:, 1] - array[:, 0]
    half = 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(array))
    return Change(control, treatment, float(difference.mean()) - half, float(difference.mean()) + half)


def write_plot(path: Path, difference: Difference, control: str, treatment: str) -> None:
    """Write moves and lifts as a picture: PNG, or one HTML page that holds it.

    Raises:
        FusionError: another suffix, no matplotlib, or a path that cannot be written.
    """
    import base64
    import io

    if path.suffix not in (".png", ".html"):
        raise FusionError("--plot", found=str(path), expected="a name that ends in .png or .html")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as exc:
        raise FusionError("--plot", found="no matplotlib", expected="the train or loadtest extra installed") from exc
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    farthest = max(1, int(np.abs(difference.moves).max(initial=1)))
    width = 2 * math.ceil(farthest / 40) - 1  # odd, so that a bar stands over each multiple of it
    reach = math.ceil(farthest / width) * width + width / 2
    left.hist(difference.moves, bins=np.arange(-reach, reach + width, width).tolist(), color="#4477aa")
    left.set(xlabel="change of position (negative = up)", ylabel="candidates", title="Moves")
    changes = {**difference.tasks, **({"P(UP)": difference.p_up} if difference.p_up else {})}
    lifts = [100 * (change.lift or 0.0) for change in changes.values()]
    spans = [
        change.lift_interval or (lift / 100, lift / 100) for change, lift in zip(changes.values(), lifts, strict=True)
    ]
    reaches = [
        [lift - 100 * low for lift, (low, _) in zip(lifts, spans, strict=True)],
        [100 * high - lift for lift, (_, high) in zip(lifts, spans, strict=True)],
    ]
    colors = ["#228833" if lift >= 0 else "#cc3311" for lift in lifts]
    right.barh(list(changes), lifts, xerr=reaches, color=colors, ecolor="#444444", capsize=3)
    right.axvline(0, color="black", linewidth=0.8)
    right.set(
        xlabel=f"expected change in the top {difference.top_k}, % (95 % over requests)",
        title=f"{control} → {treatment}",
    )
    right.invert_yaxis()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    data = picture.getvalue()
    if path.suffix == ".html":
        image = base64.b64encode(data).decode()
        source = f"data:image/png;base64,{image}"
        data = f'<!doctype html><title>Fusion diff</title><img alt="moves and lifts" src="{source}">'.encode()
    try:
        write_aside(path, data)
    except OSError as exc:
        raise FusionError(str(path), found=exc.strerror, expected="a file to write") from exc
