"""Users, items and true probabilities behind made-up logs in the layout of Ali-CCP.

The signal is planted: click and buy follow logits that add up from traits of the user, of the item, of both together
and of the position, all of which the written features show. Knows nothing of files. Legend: N rows, U users, I items,
H a user's history slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLICK_RATE = 0.04
BUY_RATE = 0.10
"""Share of clicks that are bought; the real log's .005 would leave small files without any."""
HISTORY = 8
INTENTS = 3
POSITIONS = 3
NONE = -1
_PILOT_ROWS = 100_000
_PAGE_ROWS = 10
_MATCH_SHARE = 0.3

USER_FIELDS = {"121": 97, "122": 14, "124": 2, "125": 7, "126": 4, "127": 4, "128": 2, "129": 5}
"""Single-valued user fields of the real log, with their numbers of values."""
_OFTEN_MISSING = ("126", "127")
_KINDS = ("category", "shop", "brand", "intent")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Users:
    """What is known of users: single traits by field [U], NONE where missing, and histories by kind [U, H]."""

    traits: dict[str, Ints]
    history: dict[str, Ints]
    effect_U2: Floats


@dataclass(frozen=True)
class Items:
    """What is known of items: category, shop, brand [I], up to three intents [I, 3], NONE where there are fewer."""

    category_I: Ints
    shop_I: Ints
    brand_I: Ints
    intents_I3: Ints
    effect_I2: Floats
    by_category: Ints
    category_start: Ints


@dataclass(frozen=True)
class Rows:
    """Some rows: who saw what where, what of it is in the user's history, and the truth.

    Attributes:
        matches: per kind whether the item's is in the user's history [N] (intents: [N, 3]).
        p_click_N, p_buy_N: the true P(click) and P(buy|click).
        click_N, buy_N: drawn from them; a buy is a click.
    """

    user_N: Ints
    item_N: Ints
    position_N: Ints
    matches: dict[str, NDArray[np.bool_]]
    p_click_N: Floats
    p_buy_N: Floats
    click_N: NDArray[np.bool_]
    buy_N: NDArray[np.bool_]


class World:
    """Users and items of a log of `rows` rows, drawn from a seed; their numbers stop growing at the real log's size."""

    def __init__(self, rows: int, seed: np.random.SeedSequence) -> None:
        """Draw users and items, and find the intercepts that give the two rates."""
        rng = np.random.default_rng(seed)
        self.items = _make_items(int(np.clip(rows // 60, 40, 300_000)), rng)
        self.users = _make_users(int(np.clip(rows // 50, 40, 400_000)), self.items, rng)
        self._position_effect = rng.normal(0, 0.4, (POSITIONS, 2))
        self._intercepts = np.zeros(2)
        pilot = self.draw(_PILOT_ROWS, rng)
        logits = [np.log(p) - np.log1p(-p) for p in (pilot.p_click_N, pilot.p_buy_N)]
        click = _intercept(logits[0], np.ones(_PILOT_ROWS), CLICK_RATE)
        weights = _sigmoid(logits[0] + click)  # buys are drawn among clicks, which are not like all rows
        self._intercepts = np.array([click, _intercept(logits[1], weights, BUY_RATE)])

    def draw(self, rows: int, rng: np.random.Generator) -> Rows:
        """Return rows of users on their pages, a page being ten rows that follow each other."""
        pages = -(-rows // _PAGE_ROWS)
        user_N = np.repeat(rng.integers(len(self.users.effect_U2), size=pages), _PAGE_ROWS)[:rows]
        item_N = self._items_for(user_N, rng)
        position_N = rng.integers(POSITIONS, size=rows)
        matches = self._matches(user_N, item_N)
        logit_N2 = self.users.effect_U2[user_N] + self.items.effect_I2[item_N] + self._position_effect[position_N]
        for kind, weights in zip(_KINDS, ((0.9, 0.2), (0.6, 0.9), (0.3, 0.7), (0.4, 0.3)), strict=True):
            found_N1 = matches[kind].reshape(rows, -1).max(axis=1, keepdims=True)
            logit_N2 += found_N1 * np.array(weights)
        p_N2 = _sigmoid(logit_N2 + self._intercepts)
        drawn_N2 = rng.random(p_N2.shape) < p_N2
        click_N = drawn_N2[:, 0]
        return Rows(user_N, item_N, position_N, matches, p_N2[:, 0], p_N2[:, 1], click_N, click_N & drawn_N2[:, 1])

    def _items_for(self, user_N: Ints, rng: np.random.Generator) -> Ints:
        """Return an item per row: some of a category that the user knows, others by popularity."""
        items = self.items
        item_N = _popular(len(items.effect_I2), len(user_N), rng)
        wanted = np.flatnonzero(rng.random(len(user_N)) < _MATCH_SHARE)
        slot = rng.integers(HISTORY, size=len(wanted))
        category = self.users.history["category"][user_N[wanted], slot]
        wanted, category = wanted[category != NONE], category[category != NONE]
        start, end = items.category_start[category], items.category_start[category + 1]
        at = start + (rng.random(len(wanted)) * (end - start)).astype(np.int64)
        item_N[wanted] = items.by_category[at]
        return item_N

    def _matches(self, user_N: Ints, item_N: Ints) -> dict[str, NDArray[np.bool_]]:
        items, history = self.items, self.users.history
        matches: dict[str, NDArray[np.bool_]] = {}
        for kind, values_I in (("category", items.category_I), ("shop", items.shop_I), ("brand", items.brand_I)):
            matches[kind] = (history[kind][user_N] == values_I[item_N][:, None]).any(axis=1)
        intents_N3 = items.intents_I3[item_N]
        known_N3 = (history["intent"][user_N][:, None, :] == intents_N3[:, :, None]).any(axis=2)
        matches["intent"] = known_N3 & (intents_N3 != NONE)
        return matches


def _make_items(count: int, rng: np.random.Generator) -> Items:
    categories, shops, brands = max(5, count // 100), max(5, count // 15), max(5, count // 30)
    category_I = rng.integers(categories, size=count)
    category_I[:categories] = np.arange(categories)  # none is empty
    shop_I, brand_I = rng.integers(shops, size=count), rng.integers(brands, size=count)
    intents_I3 = rng.integers(categories, size=(count, INTENTS))
    intents_I3[np.arange(INTENTS) >= rng.integers(1, INTENTS + 1, size=count)[:, None]] = NONE
    effect_I2 = (
        rng.normal(0, 0.5, (categories, 2))[category_I]
        + rng.normal(0, 0.4, (shops, 2))[shop_I]
        + rng.normal(0, 0.3, (brands, 2))[brand_I]
        + rng.normal(0, 0.2, (count, 2))
    )
    start = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(category_I, minlength=categories))])
    return Items(
        category_I,
        shop_I,
        brand_I,
        intents_I3,
        effect_I2,
        np.argsort(category_I, kind="stable"),
        start.astype(np.int64),
    )


def _make_users(count: int, items: Items, rng: np.random.Generator) -> Users:
    """Return users; a history is that of items once liked, so that its parts belong together."""
    traits: dict[str, Ints] = {}
    effect_U2 = rng.normal(0, 0.25, (count, 2))
    for field, values in USER_FIELDS.items():
        trait_U = rng.integers(values, size=count)
        effect_U2 += rng.normal(0, 0.25, (values, 2))[trait_U]
        if field in _OFTEN_MISSING:
            trait_U[rng.random(count) < 0.3] = NONE
        traits[field] = trait_U
    liked_UH = _popular(len(items.effect_I2), count * HISTORY, rng).reshape(count, HISTORY)
    absent_UH = np.arange(HISTORY) >= rng.integers(1, HISTORY + 1, size=count)[:, None]
    known = (items.category_I, items.shop_I, items.brand_I, items.intents_I3[:, 0])
    history = {kind: np.where(absent_UH, NONE, of_I[liked_UH]) for kind, of_I in zip(_KINDS, known, strict=True)}
    return Users(traits, history, effect_U2)


def _popular(items: int, rows: int, rng: np.random.Generator) -> Ints:
    """Return item numbers, low ones far more often than high ones."""
    return np.minimum((items * rng.random(rows) ** 2).astype(np.int64), items - 1)


def _intercept(logits: Floats, weights: Floats, rate: float) -> float:
    """Return what must be added to the logits for a weighted mean probability of `rate`."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.average(_sigmoid(logits + middle), weights=weights) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))
