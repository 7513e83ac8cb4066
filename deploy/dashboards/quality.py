"""Dashboard *Model quality*: do the model and the policy get what they were trained and written for?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.dashboards.panels import RANK, SELECTED, Query, lines, number, page

RATE = "$__rate_interval"
HALF = ',bin=~"0.65|0.8|0.9|1"'
"""The bins above 0.5."""


def quality_dashboard() -> dashboard.Dashboard:
    """Return the dashboard for those who own the model and the policies."""
    made = page("dlen-quality", "DLEN / Model quality", "Inputs, failures and policies of the models that serve.")
    for add in (_glance, _inputs, _predictions, _policies):
        add(made)
    return made


def _glance(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("At a glance"))
    made.with_panel(
        number("Model versions", "More than one per model: a roll-out is under way, or stuck.",
               "count(count by (model, version) (dlen_model_info == 1))", "short")
    )  # fmt: skip
    made.with_panel(
        number("Since the last model", "Time since a model was taken over.",
               'time() - max(dlen_last_reload_timestamp_seconds{kind="model"})', "s")
    )  # fmt: skip
    made.with_panel(
        number("Model failed or late", "Share of requests for which the model raised or gave NaN, or overran.",
               'sum(job:dlen_rank_degraded:ratio_rate5m{reason=~"model failed|overrun"}) or vector(0)',
               "percentunit", warn=0.001, alarm=0.01)
    )  # fmt: skip
    made.with_panel(
        number("Policy failures", "Share of requests for which the policy gave a score that is no number.",
               'sum(job:dlen_rank_degraded:ratio_rate5m{reason="policy failed"}) or vector(0)', "percentunit",
               warn=0.001, alarm=0.01)
    )  # fmt: skip
    made.with_panel(
        number("Refused requests", "Share of rank requests that the caller must change.",
               "sum(job:dlen_rank_refused:ratio_rate5m) or vector(0)", "percentunit", warn=0.01, alarm=0.05)
    )  # fmt: skip
    made.with_panel(
        number("Values missing", "Feature values that a request lacks, over all its rows.",
               "sum(job_feature:dlen_feature_missing:per_request_rate5m) or vector(0)", "short")
    )  # fmt: skip


def _inputs(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("Inputs"))
    made.with_panel(
        lines("Missing values against the day's mean", "The five worst features. A peak: its source has gone, or was "
              "renamed. 1 is as ever; longer requests do not show.",
              [Query("topk(5, max by (feature) (job_feature:dlen_feature_missing:times_mean1d))", "{{feature}}")],
              "times", alarm=2)
    )  # fmt: skip
    made.with_panel(
        lines("Missing values per candidate", "The five worst features, over 5 minutes. 1: no candidate has it.",
              [Query("topk(5, max by (feature) (job_feature:dlen_feature_missing:per_candidate_rate5m))",
                     "{{feature}}")], "short")
    )  # fmt: skip
    made.with_panel(
        lines("Refused requests by problem", "feature-invalid after a release: the caller's features have changed.",
              [Query(f"sum by (problem) (rate(dlen_rank_refused_total{{{SELECTED}}}[{RATE}]))", "{{problem}}")],
              "reqps", stacked=True)
    )  # fmt: skip
    made.with_panel(
        lines("Rows encoded", "request: one each; item: one per candidate.",
              [Query(f"sum by (part) (rate(dlen_feature_rows_total{{{SELECTED}}}[{RATE}]))", "{{part}}")], "rowsps")
    )  # fmt: skip
    stage = f'dlen_rank_stage_seconds_bucket{{{SELECTED},stage="predict"}}'
    made.with_panel(
        lines("Time to predict", "The model alone, without parsing and fusing.",
              [Query(f"histogram_quantile({share}, sum by (le) (rate({stage}[{RATE}])))", f"p{share * 100:g}")
               for share in (0.5, 0.99)], "s")
    )  # fmt: skip
    made.with_panel(
        lines("Model versions over time", "How many rankers serve each version.",
              [Query(f"sum by (model, version) (dlen_model_info{{{SELECTED}}} == 1)", "{{model}} {{version}}")],
              "short", stacked=True)
    )  # fmt: skip


def _predictions(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("Predictions"))
    predicted = f"dlen_model_probabilities_total{{{{{SELECTED}{{}}}}}}"
    made.with_panel(
        lines("Drift of predictions", "Population stability index of the last hour against the rows of validation: "
              "below 0.1 as ever, above 0.25 something changed.",
              [Query("max by (model, version, task) (job_model:dlen_model_probabilities:psi1h)",
                     "{{model}} {{version}} {{task}}")], "short", alarm=0.25)
    )  # fmt: skip
    made.with_panel(
        lines("Likely positives", "Share of candidates with P(task) above 0.5. A step: an input changed.",
              [Query(f"sum by (task) (rate({predicted.format(HALF)}[{RATE}])) / "
                     f"sum by (task) (rate({predicted.format('')}[{RATE}]))", "{{task}}")], "percentunit")
    )  # fmt: skip
    scores = f"dlen_rank_scores_total{{{SELECTED}}}[{RATE}]"
    made.with_panel(
        lines("Scores", "Share of fused scores in the bin up to each edge. A step that no release explains: look left.",
              [Query(f"sum by (bin) (rate({scores})) / on () group_left () sum(rate({scores}))", "≤ {{bin}}")],
              "percentunit", stacked=True)
    )  # fmt: skip


def _policies(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("Policies"))
    made.with_panel(
        lines("Fallback orders by reason", "policy failed: look at the newest config; model failed: at the model.",
              [Query(f"sum by (reason) (rate(dlen_rank_degraded_total{{{SELECTED}}}[{RATE}]))", "{{reason}}")],
              "reqps", stacked=True)
    )  # fmt: skip
    made.with_panel(
        lines("Rules that found no data", "Share of rank requests in which a rerank rule was skipped.",
              [Query(f"sum by (rule) (rate(dlen_rerank_skipped_total{{{SELECTED}}}[{RATE}])) / on () group_left () "
                     f"sum(rate(dlen_http_requests_total{{{RANK}}}[{RATE}]))", "{{rule}}")], "percentunit")
    )  # fmt: skip
    made.with_panel(
        lines("Positions with broken caps", "No candidate kept all caps; each second.",
              [Query(f"sum(rate(dlen_rerank_broken_caps_total{{{SELECTED}}}[{RATE}]))", "positions")], "short")
    )  # fmt: skip
