"""The few kinds of panel that our dashboards are made of. Knows Grafana, not the ranker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)

SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
SELECTED = 'job="ranker",instance=~"$instance"'
STATUS_COLOURS = {"^2": "green", "^4": "orange", "^503$": "red", "^50[^3]$": "dark-red"}
RANK = f'{SELECTED},route=~"/v1/rank|/v2/.*infer"'


@dataclass(frozen=True)
class Query:
    """One PromQL expression of a panel.

    Attributes:
        expr: the expression; may use `$instance`, `$__rate_interval` and `$__range`.
        legend: what Grafana calls its series, `{{label}}` being replaced.
    """

    expr: str
    legend: str = ""


def number(
    title: str, description: str, expr: str, unit: str, *, warn: float | None = None, alarm: float | None = None
) -> stat.Panel:
    """Return one big number, green below `warn`, red from `alarm` on; grey where it is neither good nor bad."""
    panel = stat.Panel().title(title).description(description).datasource(SOURCE).unit(unit).span(4).height(4)
    panel.color_mode(BigValueColorMode.BACKGROUND if alarm is not None else BigValueColorMode.VALUE)
    panel.graph_mode(BigValueGraphMode.AREA).thresholds(_thresholds(warn, alarm))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.with_target(_target(Query(expr, title), 0))


def lines(
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    *,
    alarm: float | None = None,
    stacked: bool = False,
    span: int = 8,
    colours: Mapping[str, str] | None = None,
    dashed: str | None = None,
) -> timeseries.Panel:
    """Return lines over time.

    `alarm` draws the value from which on an alert fires; `colours` go by names (regexps), and so does who is `dashed`.
    """
    panel = timeseries.Panel().title(title).description(description).datasource(SOURCE).unit(unit)
    panel.span(span).height(8).min(0).line_width(2).fill_opacity(30 if stacked else 5)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if alarm is not None:
        panel.thresholds(_thresholds(None, alarm))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    for names, colour in (colours or {}).items():
        fixed = DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        panel.override_by_regexp(names, [fixed])
    if dashed is not None:
        style = DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [6, 6]})
        panel.override_by_regexp(dashed, [style])
    for place, query in enumerate(queries):
        panel.with_target(_target(query, place))
    return panel


def page(uid: str, title: str, description: str) -> dashboard.Dashboard:
    """Return an empty dashboard with the choice of instances that every one of ours has."""
    instances = (
        dashboard.QueryVariable("instance")
        .label("ranker")
        .datasource(SOURCE)
        .query('label_values(up{job="ranker"}, instance)')
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )
    made = dashboard.Dashboard(title).uid(uid).description(description).tags(["dlen"]).refresh("10s").readonly()
    return made.time("now-1h", "now").timezone("browser").with_variable(instances)


def _target(query: Query, place: int) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + place)).range()
    return made.datasource(SOURCE).legend_format(query.legend)


def _thresholds(warn: float | None, alarm: float | None) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=None, color="green" if alarm is not None else "text")]
    if warn is not None:
        steps.append(Threshold(value=warn, color="orange"))
    if alarm is not None:
        steps.append(Threshold(value=alarm, color="red"))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
