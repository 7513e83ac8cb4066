"""The head of a serving graph: towers' outputs → logits → P(task), and with the latent state P(task, UP) and P(UP).

Tasks within others are chains of products, P(child) = P(parent)·P(child|parent), in both states where there are
two; a probability is asked for here, so nothing stays in logs. Rows may be 1, not N, where towers see the
request only: they are broadcast where P(UP) comes in.

Legend: N candidates, T tasks, L logits per task, W width of a tower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_export.onnx_writer import GraphWriter
from model_export.wiring import array
from training.models.heads import IndependentHead, LatentHead
from training.models.structure import NO_PARENT, TaskStructure, unrelated


def write_independent_head(w: GraphWriter, head: IndependentHead, logits: str) -> dict[str, str]:
    """Return the edge of P(task) [N, T] from the tasks' logits [N, T]."""
    p = w.op("Sigmoid", logits)
    return {"p": _chained(w, p, head.structure or unrelated(len(head.bias)))}


def write_latent_head(w: GraphWriter, head: LatentHead, logits: str, h: str) -> dict[str, str]:
    """Return the edges of P(task), P(task, UP) [N, T] and P(UP) [N].

    `logits` are all f, then all g [N or 1, 2·T]; `h` is the logit of P(UP) [N, 1].
    """
    tasks = len(head.alpha)
    structure = head.structure or unrelated(tasks)
    a, b = w.split(w.op("Sigmoid", logits), [tasks] * 2)
    bounds_a, bounds_b = bounds_of(head)
    if any(structure.mirrored):
        a = w.op("Mul", a, w.constant(bounds_a))
    b = w.op("Mul", b, w.constant(bounds_b))  # Eq. 10
    a, b = _chained(w, a, structure), _chained(w, b, structure)
    u = w.op("Sigmoid", h)
    joint = w.op("Mul", a, u)  # Eq. 4
    marginal = w.op("Add", joint, w.op("Mul", b, w.op("Sigmoid", w.op("Neg", h))))  # Eq. 1
    return {"p": marginal, "p_joint": joint, "p_up": w.reshape(u, [-1])}


def bounds_of(head: LatentHead) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the most [T] that P(task|UP) and P(task|DOWN) can be, given the parent."""
    structure = head.structure or unrelated(len(head.alpha))
    bounds_a, bounds_b = structure.bounds(head.alpha)
    return array(bounds_a), array(bounds_b)


def write_task_logits(w: GraphWriter, head: IndependentHead | LatentHead, towers: str) -> str:
    """Return the tasks' logits [N, L·T] from the towers side by side [N, T·W], as one block-diagonal product."""
    weight, bias = last_layer(head)
    return w.op("Gemm", towers, w.constant(weight), w.constant(bias))


def last_layer(head: IndependentHead | LatentHead) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the weight [T·W, L·T] and bias [L·T] that make all logits of all towers; columns are all f, then all g."""
    biases = [head.bias_f, head.bias_g] if isinstance(head, LatentHead) else [head.bias]
    weight_TWL = array(head.weight)
    tasks, width, logits = weight_TWL.shape
    blocks = np.zeros((tasks, width, logits, tasks), dtype=np.float32)
    for t in range(tasks):
        blocks[t, :, :, t] = weight_TWL[t]
    return blocks.reshape(tasks * width, logits * tasks), np.concatenate([array(bias) for bias in biases])


def _chained(w: GraphWriter, given_parents: str, structure: TaskStructure) -> str:
    """Return P(task) [N, T] from the probabilities given that the parent happened."""
    if not structure.has_chains:
        return given_parents
    columns: Sequence[str] = w.split(given_parents, [1] * len(structure.parents))
    p = list(columns)
    for task in structure.order:
        if (parent := structure.parents[task]) != NO_PARENT:
            p[task] = w.op("Mul", p[parent], p[task])
    return w.concat(p)
