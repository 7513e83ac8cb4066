"""How a score and a position came about: terms, multipliers and moves that give both exactly.

The terms add up, in their order, to `total`; `link` turns the total into `fused`; the multipliers, one after the
other, turn `fused` into `score`; the moves add up from `fused_position` to `position`. Every equality is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from fusion.compile import Formula
from fusion.formulas import Floats, add_terms

if TYPE_CHECKING:
    from fusion.rerank import Slate

LINKS = {
    "identity": "fused = total",
    "squeeze": "fused = total + ceiling, or below the ceiling where the total is negative",
    "exp": "fused = exp(total): the terms are logs of factors",
}


@dataclass(frozen=True)
class Explanation:
    """The explanation of a whole request, as arrays; `items` gives it per candidate.

    Attributes:
        names: one per term.
        terms_KN: terms per candidate, float64.
        total_N: their sum.
        link: identity, squeeze or exp.
        fused_N: score before rules.
        score_N: score after rules.
        factors: (rule, multiplier per candidate).
        positions: (rule, position per candidate from 1; 0 = not in the order), `score` being the first.
        propensity_N: as in `Ranked`.
    """

    names: tuple[str, ...]
    terms_KN: Floats
    total_N: Floats
    link: str
    fused_N: Floats
    score_N: Floats
    factors: tuple[tuple[str, Floats], ...]
    positions: tuple[tuple[str, NDArray[np.intp]], ...]
    propensity_N: Floats | None

    def items(self, candidates: Iterable[int]) -> list[dict[str, Any]]:
        """Return one plain mapping per candidate index, ready for JSON."""
        return [self._item(int(candidate)) for candidate in candidates]

    def _item(self, candidate: int) -> dict[str, Any]:
        moves = []
        before = int(self.positions[0][1][candidate])
        for rule, position_N in self.positions[1:]:
            after = int(position_N[candidate])
            if after != before:
                moves.append({"rule": rule, "from": before, "to": after or None})
            if after == 0:
                break
            before = after
        multipliers = [
            {"rule": rule, "factor": float(factor_N[candidate])}
            for rule, factor_N in self.factors
            if factor_N[candidate] != 1
        ]
        item: dict[str, Any] = {
            "terms": [
                {"name": name, "value": float(value)}
                for name, value in zip(self.names, self.terms_KN[:, candidate], strict=True)
            ],
            "total": float(self.total_N[candidate]),
            "link": self.link,
            "fused": float(self.fused_N[candidate]),
            "multipliers": multipliers,
            "score": float(self.score_N[candidate]),
            "fused_position": int(self.positions[0][1][candidate]),
            "moves": moves,
            "position": int(self.positions[-1][1][candidate]) or None,
        }
        if self.propensity_N is not None:
            item["propensity"] = float(self.propensity_N[candidate])
        return item


def explain_slate(formula: Formula, terms_KN: Floats, fused_N: Floats, slate: Slate) -> Explanation:
    """Return the explanation of a slate whose rules have run with `explain` set."""
    positions = []
    for step in slate.steps:
        position_N = np.zeros(len(fused_N), dtype=np.intp)
        position_N[step.order_M] = np.arange(1, len(step.order_M) + 1)
        positions.append((step.label, position_N))
    return Explanation(
        names=formula.names,
        terms_KN=terms_KN,
        total_N=add_terms(terms_KN),
        link=formula.link_name,
        fused_N=fused_N,
        score_N=slate.score_N,
        factors=tuple((step.label, step.factor_N) for step in slate.steps if step.factor_N is not None),
        positions=tuple(positions),
        propensity_N=slate.propensity_N,
    )


def explanation_table(ids: Sequence[str], items: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of explained items (as `Explanation.items` gives them) for a terminal."""
    table = Table(title="Why each candidate stands where it does", caption=LINKS.get(_link(items), ""))
    table.add_column("#", justify="right")
    for name in ("id", "terms", "total → score", "moves"):
        table.add_column(name)
    for candidate_id, item in zip(ids, items, strict=True):
        steps = [_figure(item["total"])]
        if item["link"] != "identity":
            steps.append(f"fused {_figure(item['fused'])}")
        steps += [f"{factor['rule']} ×{factor['factor']:.4f}" for factor in item["multipliers"]]
        if len(steps) > 1:
            steps.append(f"score {_figure(item['score'])}")
        table.add_row(
            str(item["position"] or "dropped"),
            candidate_id,
            "\n".join(f"{_figure(term['value'])} {term['name']}" for term in item["terms"]),
            "\n".join(steps),
            "\n".join(f"{move['rule']} {move['from']}→{move['to'] or 'out'}" for move in item["moves"]),
            end_section=True,
        )
    return table


def number_text(value: float, decimals: int, sign: str = "") -> str:
    """Return a number with so many decimals, or with five digits where those would hide it; `sign` "+" shows it."""
    hidden = 0 < abs(value) < 10.0 ** (2 - decimals)
    return f"{value:{sign}.4e}" if hidden else f"{value:{sign}.{decimals}f}"


def _figure(value: float) -> str:
    return number_text(value, decimals=4, sign="+")


def _link(items: Sequence[Mapping[str, Any]]) -> str:
    return str(items[0]["link"]) if items else ""
