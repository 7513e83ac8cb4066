"""Dashboard *Service*: is it up, fast, whole; and if not, where does it hurt?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.dashboards.panels import RANK, SELECTED, STATUS_COLOURS, Query, lines, number, page

RATE = "$__rate_interval"


def service_dashboard() -> dashboard.Dashboard:
    """Return the dashboard that an on-call person opens first."""
    made = page("dlen-service", "DLEN / Service", "Requests, errors, duration and capacity of the rankers.")
    for add in (_glance, _requests, _capacity, _process, _content):
        add(made)
    return made


def _glance(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("At a glance"))
    made.with_panel(
        number("Alerts firing", "All alerts of this Prometheus; docs/runbook.md has an entry for each.",
               'count(ALERTS{alertstate="firing"}) or vector(0)', "short", alarm=1)
    )  # fmt: skip
    made.with_panel(
        number("Rankers down", "Targets that Prometheus cannot read.", 'count(up{job="ranker"} == 0) or vector(0)',
               "short", alarm=1)
    )  # fmt: skip
    made.with_panel(
        number("Rank requests", "Answered each second, over 5 minutes.", "sum(job:dlen_rank_requests:rate5m)", "reqps")
    )
    made.with_panel(
        number("Failed", "Share of rank requests answered 5xx over 5 minutes; the objective is 0.1 %.",
               "max(job:dlen_rank_errors:ratio_rate5m)", "percentunit", warn=0.001, alarm=0.0144)
    )  # fmt: skip
    made.with_panel(
        number("p99", "99 % of rank requests are faster, over 5 minutes.", "max(job:dlen_rank_seconds:p99_rate5m)",
               "s", warn=0.05, alarm=0.1)
    )  # fmt: skip
    made.with_panel(
        number("Degraded", "Share of rank requests answered with the fallback order over 5 minutes.",
               "sum(job:dlen_rank_degraded:ratio_rate5m) or vector(0)", "percentunit", warn=0.001, alarm=0.01)
    )  # fmt: skip


def _requests(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("Requests"))
    made.with_panel(
        lines("Rank requests by status", "5xx fail the objective; 4xx are for the caller to change.",
              [Query(f"sum by (status) (rate(dlen_http_requests_total{{{RANK}}}[{RATE}]))", "{{status}}")],
              "reqps", stacked=True, colours=STATUS_COLOURS)
    )  # fmt: skip
    made.with_panel(
        lines("Duration of rank requests", "From the request's head to its answer; shed ones are not in it.",
              [_quantile(share, f"dlen_http_request_seconds_bucket{{{RANK}}}") for share in (0.5, 0.9, 0.99)],
              "s", alarm=0.1)
    )  # fmt: skip
    made.with_panel(
        lines("Error budget: how fast it burns", "1 spends the budget of 30 days in 30 days; 14.4 in 2 days.",
              [Query(f"max(job:dlen_rank_errors:ratio_rate{window}) / 0.001", window)
               for window in ("5m", "1h", "6h", "3d")], "short", alarm=14.4)
    )  # fmt: skip


def _capacity(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("Capacity"))
    made.with_panel(
        lines("Requests in flight", "At the limit the next one is answered 503.",
              [Query(f"sum(dlen_rank_in_flight{{{SELECTED}}})", "in flight"),
               Query(f"sum(dlen_rank_in_flight_limit{{{SELECTED}}})", "limit")], "short")
    )  # fmt: skip
    made.with_panel(
        lines("Shed", "limit: no permit, 503. deadline: dropped unscored, 504.",
              [Query(f"sum by (reason) (rate(dlen_rank_shed_total{{{SELECTED}}}[{RATE}]))", "{{reason}}")],
              "reqps", stacked=True)
    )  # fmt: skip
    made.with_panel(
        lines("Answered with the fallback order", "Model or policy failed, or the model overran the deadline.",
              [Query(f"sum by (reason) (rate(dlen_rank_degraded_total{{{SELECTED}}}[{RATE}]))", "{{reason}}")],
              "reqps", stacked=True)
    )  # fmt: skip
    stage = f"dlen_rank_stage_seconds_{{}}{{{{{SELECTED}}}}}[{RATE}]"
    seconds, count = (f"sum by (stage) (rate({stage.format(kind)}))" for kind in ("sum", "count"))
    made.with_panel(
        lines("Mean time in each stage", "Which part of a request grew?", [Query(f"{seconds} / {count}", "{{stage}}")],
              "s", stacked=True)
    )  # fmt: skip
    made.with_panel(
        lines("Candidates per request", "Longer requests take longer.",
              [_quantile(share, f"dlen_rank_candidates_bucket{{{SELECTED}}}") for share in (0.5, 0.99)], "short")
    )  # fmt: skip
    made.with_panel(
        lines("Encodings", "What callers send and take.",
              [Query(f"sum by (taken, given) (rate(dlen_rank_encodings_total{{{SELECTED}}}[{RATE}]))",
                     "{{taken}} → {{given}}")], "reqps", stacked=True)
    )  # fmt: skip


def _process(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("Processes"))
    made.with_panel(
        lines("Event-loop lag", "How much later than asked for the event loop wakes: no CPU, or something blocks it.",
              [_quantile(share, f"dlen_event_loop_lag_seconds_bucket{{{SELECTED}}}") for share in (0.5, 0.99)], "s")
    )  # fmt: skip
    made.with_panel(
        lines("Workers replaced", "Each within the last 15 minutes; more than 3 is an alert.",
              [Query(f"sum by (instance) (increase(dlen_worker_restarts_total{{{SELECTED}}}[15m]))", "{{instance}}")],
              "short", alarm=3)
    )  # fmt: skip
    made.with_panel(
        lines("Log lines and spans lost", "Nobody takes them fast enough; requests are not delayed.",
              [Query(f"sum by (kind) (rate(dlen_log_lines_dropped_total{{{SELECTED}}}[{RATE}]))", "lines: {{kind}}"),
               Query(f"sum(rate(dlen_trace_spans_lost_total{{{SELECTED}}}[{RATE}]))", "spans")], "short")
    )  # fmt: skip


def _content(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("What serves"))
    made.with_panel(
        lines("Model versions", "How many rankers serve each version.",
              [Query(f"sum by (model, version) (dlen_model_info{{{SELECTED}}} == 1)", "{{model}} {{version}}")],
              "short", stacked=True)
    )  # fmt: skip
    made.with_panel(
        lines("Last look at models and config", "1: nothing wrong. 0: something new is refused, the old one serves.",
              [Query(f"min by (kind) (dlen_last_reload_successful{{{SELECTED}}})", "{{kind}}")], "short")
    )  # fmt: skip
    made.with_panel(
        lines("Refused versions and configs", "Counted once each; the log says what was wrong.",
              [Query(f"sum by (kind, reason) (dlen_load_failures_total{{{SELECTED}}})", "{{kind}}: {{reason}}")],
              "short")
    )  # fmt: skip


def _quantile(share: float, buckets: str) -> Query:
    return Query(f"histogram_quantile({share}, sum by (le) (rate({buckets}[{RATE}])))", f"p{share * 100:g}")
