"""The precision gate: what a graph in fewer bits changes, on real rows of a trained network.

An untrained network flatters int8, and so does an average over tasks: every score must pass by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bundle.golden import Arrays
from bundle.manifest import P_JOINT, P_UP, P, PrecisionGate, ScoreChange, Tensor
from model_export.errors import PrecisionRefused
from model_export.parity import SampleRows, Session, network_outputs, request_groups, run_graph
from training.metrics import auc
from training.models.network import Network

AUC_LIMIT = 5e-4
MEAN_CHANGE_LIMIT = 2e-3
OVERLAP_LIMIT = 0.97
TOP = 10
REQUESTS = 40
CANDIDATES = 500
_FEWEST_ROWS = 100
_ROWS_AT_ONCE = 4096

Scores = dict[str, NDArray[np.float32]]


def measure_gate(
    network: Network,
    session: Session,
    rows: SampleRows,
    tensors: tuple[Tensor, ...],
    tasks: tuple[str, ...],
) -> PrecisionGate:
    """Return what the graph's scores change against the trained network's.

    Every row as it was logged gives AUC and change of probability; the overlap of the ten best comes from
    requests that rank 500 of the rows' items for one row's request part.

    Raises:
        PrecisionRefused: the rows have no labels, or are too few to tell.
    """
    if rows.labels is None:
        raise PrecisionRefused("the run's sample", found="no labels", expected="labels; train the run again")
    if len(rows.codes) < _FEWEST_ROWS:
        raise PrecisionRefused("the run's sample", found=f"{len(rows.codes)} rows", expected=f"≥ {_FEWEST_ROWS}")
    exact, found = _scores_of_rows(network, session, rows, tensors, tasks)
    labels = dict(zip(tasks, rows.labels.T, strict=True)) | {P_UP: rows.labels.max(axis=1)}
    overlaps: dict[str, list[float]] = {name: [] for name in exact}
    for wanted, got in _ranked(network, session, rows, tensors, tasks):
        for name in overlaps:
            overlaps[name].append(top_overlap(wanted[name], got[name]))
    return PrecisionGate(
        rows=len(rows.codes),
        requests=REQUESTS,
        candidates=min(CANDIDATES, len(rows.codes)),
        scores={name: _change(labels[name], exact[name], found[name], overlaps[name]) for name in exact},
    )


def check_gate(gate: PrecisionGate, what: str = "int8") -> None:
    """Check the figures of a lower precision.

    Raises:
        PrecisionRefused: names each score outside the limits, with its figures.
    """
    complaints = []
    for name, change in gate.scores.items():
        if change.auc_before is not None and change.auc_after is not None:
            difference = change.auc_after - change.auc_before
            if abs(difference) > AUC_LIMIT:
                complaints.append(f"AUC of {name} {difference:+.5f}")
        if change.mean_abs_change > MEAN_CHANGE_LIMIT:
            complaints.append(f"mean |Δp| of {name} {change.mean_abs_change:.2g}")
        if change.top10_overlap < OVERLAP_LIMIT:
            complaints.append(f"top-10 overlap of {name} {change.top10_overlap:.3f}")
    if complaints:
        raise PrecisionRefused(
            f"{what} over {gate.rows:,} validation rows",
            found=", ".join(complaints),
            expected=f"|ΔAUC| ≤ {AUC_LIMIT}, mean |Δp| ≤ {MEAN_CHANGE_LIMIT}, top-10 overlap ≥ {OVERLAP_LIMIT}",
        )


def top_overlap(exact_N: NDArray[np.float32], found_N: NDArray[np.float32]) -> float:
    """Return the share of the exact ten best that are among the ten best found."""
    best = set(np.argsort(-exact_N, kind="stable")[:TOP].tolist())
    return len(best & set(np.argsort(-found_N, kind="stable")[:TOP].tolist())) / len(best)


def _change(
    labels: NDArray[np.uint8], exact: NDArray[np.float32], found: NDArray[np.float32], overlaps: list[float]
) -> ScoreChange:
    difference = np.abs(exact.astype(np.float64) - found)
    return ScoreChange(
        auc_before=auc(labels, exact),
        auc_after=auc(labels, found),
        mean_abs_change=float(difference.mean()),
        max_abs_change=float(difference.max()),
        top10_overlap=float(np.mean(overlaps)),
    )


def _scores_of_rows(
    network: Network,
    session: Session,
    rows: SampleRows,
    tensors: tuple[Tensor, ...],
    tasks: tuple[str, ...],
) -> tuple[Scores, Scores]:
    """Return each score of every row, by the network and by the graph."""
    by_network = [network_outputs(network, *rows.batch(at, at + _ROWS_AT_ONCE)) for at in _steps(len(rows.codes))]
    exact = {name: np.concatenate([outputs[name] for outputs in by_network]) for name in by_network[0]}
    found = {name: np.empty_like(array) for name, array in exact.items()}
    for group in request_groups(rows):
        for name, array in run_graph(session, rows.request(int(group[0]), group, tensors)).items():
            found[name][group] = array
    return _by_score(exact, tasks), _by_score(found, tasks)


def _ranked(
    network: Network,
    session: Session,
    rows: SampleRows,
    tensors: tuple[Tensor, ...],
    tasks: tuple[str, ...],
) -> Iterator[tuple[Scores, Scores]]:
    """Yield the scores of requests of many candidates, by the network and by the graph."""
    random = np.random.default_rng(0)
    for _ in range(REQUESTS):
        row = int(random.integers(len(rows.codes)))
        items = random.permutation(len(rows.codes))[:CANDIDATES]
        exact = network_outputs(network, *rows.rows_of(row, items))
        yield _by_score(exact, tasks), _by_score(run_graph(session, rows.request(row, items, tensors)), tasks)


def _by_score(outputs: Arrays, tasks: tuple[str, ...]) -> Scores:
    """Return P of each task and P(UP) by name; P(task, UP) is their product."""
    assert P_JOINT not in outputs or P_UP in outputs
    scores = {task: np.asarray(outputs[P][:, t], dtype=np.float32) for t, task in enumerate(tasks)}
    return scores | ({P_UP: np.asarray(outputs[P_UP], dtype=np.float32)} if P_UP in outputs else {})


def _steps(rows: int) -> range:
    return range(0, rows, _ROWS_AT_ONCE)
