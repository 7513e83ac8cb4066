"""What a simulated feed is like: every parameter of the generator, declared once, read from a YAML file.

Knows nothing of how impressions are drawn. Effects are in logit units unless a name says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simulator.errors import ScenarioInvalid, ScenarioUnknown

FOLDER = Path(__file__).parent / "scenarios"
_MAX_BYTES = 1 << 20


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Size(_Model):
    """How many users, items and sessions stand behind the impressions.

    Attributes:
        users, items: fixed numbers; left out, they follow the impressions (`rows_per_user`, `rows_per_item`).
        rows_per_session: mean impressions of one visit.
    """

    days: int = Field(ge=3, le=365)
    rows_per_session: float = Field(ge=1, le=200)
    rows_per_user: float = Field(gt=0)
    rows_per_item: float = Field(gt=0)
    users: int | None = Field(default=None, ge=10, le=100_000_000)
    items: int | None = Field(default=None, ge=10, le=100_000_000)
    items_per_author: float = Field(ge=1)
    topics: int = Field(ge=2, le=1_000)


class Exposure(_Model):
    """How the feed in front of the users chose what it showed.

    Attributes:
        favourite_share: share of impressions taken from the user's favourite topic.
        item_zipf: exponent of item popularity.
        user_spread: log-normal deviation of user activity.
        age_missing: share of users whose age band is not known.
    """

    favourite_share: float = Field(ge=0, le=1)
    item_zipf: float = Field(ge=0, le=2)
    user_spread: float = Field(ge=0, le=2)
    age_missing: float = Field(ge=0, le=1)


class Emotion(_Model):
    """What makes a user prefer the feed: logit P(UP|x) = intercept + the sum of these.

    Attributes:
        mean: E[P(UP|x)] over impressions, by which the intercept is found.
        favourite: the item's topic is the user's favourite one.
        quality: per deviation of item quality (observed with noise as `finish_rate`).
        objectionable: the item is objectionable (observed with noise as `report_rate`).
        age_topic, author, mood, item, taste: deviations of effects drawn once per age band × topic, author,
            user, item, and user × topic; the last three are not among the features.
        hour, tab: size of the effects of the hour (best at 21:00) and of the tab.
    """

    mean: float = Field(gt=0, lt=1)
    favourite: float
    quality: float
    objectionable: float
    objectionable_share: float = Field(ge=0, le=1)
    age_topic: float = Field(ge=0)
    author: float = Field(ge=0)
    hour: float
    tab: float
    mood: float = Field(ge=0)
    item: float = Field(ge=0)
    taste: float = Field(ge=0)


class Task(_Model):
    """One interaction: likely in one latent state, rare in the other.

    A positive task has a_t = σ(f) and b_t = α·σ(g), a negative one a_t = α·σ(g) and b_t = σ(f), with
    f = intercept + e, g = damping·e, e = style + habit + topic + quality + objectionable, α = k·base_rate.

    Attributes:
        base_rate: P(t) over impressions, by which the intercept is found.
        habit: deviation of the user's own expressive habit for this task (not among the features).
        topic: deviation of the topic's effect on this task.
        quality, objectionable: effects of the item on e.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    kind: Literal["positive", "negative"]
    base_rate: float = Field(gt=0, lt=1)
    habit: float = Field(ge=0)
    topic: float = Field(ge=0)
    quality: float
    objectionable: float
    held_out: bool = False


class Style(_Model):
    """An observed kind of user: how common, and its effect on each task's e (0 where not named)."""

    share: float = Field(gt=0)
    tasks: dict[str, float]


class Scenario(_Model):
    """All parameters of a simulated feed.

    Attributes:
        k: α_t = k · base_rate_t, the ceiling of a task in its unlikely state (Eq. 5-7).
        damping: share of e that is left in the unlikely state.
    """

    name: str
    description: str
    k: float = Field(gt=0, lt=1)
    damping: float = Field(ge=0, le=1)
    size: Size
    exposure: Exposure
    emotion: Emotion
    styles: dict[str, Style] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError("task names must be unique")
        for style, entry in self.styles.items():
            if unknown := sorted(set(entry.tasks) - set(names)):
                raise ValueError(f"style {style} names unknown tasks: {', '.join(unknown)}")
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(task.name for task in self.tasks)

    def users(self, impressions: int) -> int:
        """Return the number of users behind that many impressions."""
        return self.size.users or max(200, round(impressions / self.size.rows_per_user))

    def items(self, impressions: int) -> int:
        """Return the number of items behind that many impressions."""
        return self.size.items or max(200, round(impressions / self.size.rows_per_item))


def scenario_names() -> tuple[str, ...]:
    """Return the names of the scenarios that come with the package, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def read_scenario(name_or_path: str) -> Scenario:
    """Return the scenario of that name, or the one in a file whose name ends in .yaml.

    A file may say `extends: NAME` and hold only what differs; lists are replaced, mappings merged, and tasks
    may be a mapping by name that changes single fields.

    Raises:
        ScenarioUnknown: no scenario of that name.
        ScenarioInvalid: the file does not read or does not hold a scenario; names the place in it.
    """
    document = _read_document(name_or_path, depth=0)
    try:
        return Scenario.model_validate(document)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        thing = f"scenario {name_or_path}: {place}"
        raise ScenarioInvalid(thing, found=repr(first["input"])[:80], expected=first["msg"]) from None


def _read_document(name_or_path: str, *, depth: int) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix != ".yaml":
        path = FOLDER / f"{name_or_path}.yaml"
        if name_or_path not in scenario_names():
            expected = f"one of {', '.join(scenario_names())}, or a .yaml file"
            raise ScenarioUnknown("scenario", found=repr(name_or_path), expected=expected)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ScenarioInvalid(str(path), found="a larger file", expected=f"at most {_MAX_BYTES} bytes")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ScenarioInvalid(str(path), found=exc.strerror, expected="a readable scenario file") from exc
    except (UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ScenarioInvalid(str(path), found=str(exc).splitlines()[0], expected="YAML text") from exc
    if not isinstance(document, dict):
        raise ScenarioInvalid(str(path), found=type(document).__name__, expected="a mapping")
    base = document.pop("extends", None)
    if base is None:
        return document
    if depth >= 4 or not isinstance(base, str):
        raise ScenarioInvalid(f"{path}: extends", found=repr(base), expected="a scenario, at most four deep")
    return _merge(_read_document(base, depth=depth + 1), document)


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        below = base.get(key)
        if key == "tasks" and isinstance(below, list) and isinstance(value, dict):
            unknown = sorted(set(value) - {task["name"] for task in below})
            if unknown:
                raise ScenarioInvalid("scenario: tasks", found=", ".join(unknown), expected="tasks of the base")
            merged[key] = [{**task, **value.get(task["name"], {})} for task in below]
        elif isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged
