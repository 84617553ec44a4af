"""What a study of routers found: read from MLflow, written as tables and pictures into a page."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textmill.errors import UserError
from textmill.metrics.bootstrap import Interval
from textmill.registry.runs.tracking import StageRun

TAG = "textmill.routing_study"
DENSE, DENSE_LONGER, LIMITED = "dense", "dense_equal_time", "switch_capacity"
TITLES = {DENSE_LONGER: "dense, equal time", LIMITED: "switch, capacity 1.25"}
_NOTHING = "-"
_LOSS = "final/validation/loss"
_LAST_SHARE = 0.2
_BALANCE = ("load_entropy", "load_max_over_mean", "dropped_share", "untouched_share", "overflow_share")


@dataclass(frozen=True)
class Outcome:
    """One training.

    Attributes:
        metrics: The last value of each.
        params: As logged.
        balance: The routers' figures, means over the last fifth of the steps.
    """

    metrics: Mapping[str, float]
    params: Mapping[str, str]
    balance: Mapping[str, float]


@dataclass(frozen=True)
class Found:
    """All of a study.

    Attributes:
        outcomes: By arm and seed.
        speeds: Tokens a second of training, by arm.
        about: Parameters and tags of the parent run.
        looks_ahead: By arm, `training` or `always`.
        experts_per_token: By arm.
    """

    outcomes: dict[str, dict[int, Outcome]]
    speeds: dict[str, float]
    about: Mapping[str, str]
    looks_ahead: dict[str, str] = field(default_factory=dict)
    experts_per_token: dict[str, float] = field(default_factory=dict)

    def losses(self, arm: str) -> dict[int, float]:
        """Final validation losses by seed."""
        return {seed: outcome.metrics[_LOSS] for seed, outcome in self.outcomes.get(arm, {}).items()}

    def mean(self, arm: str, metric: str) -> float | None:
        """A metric's mean over the seeds."""
        values = [one.metrics[metric] for one in self.outcomes.get(arm, {}).values() if metric in one.metrics]
        return statistics.fmean(values) if values else None

    def balance(self, arm: str, name: str) -> float | None:
        """A figure of balance in training, as a mean over the seeds."""
        values = [one.balance[name] for one in self.outcomes.get(arm, {}).values() if name in one.balance]
        return statistics.fmean(values) if values else None


# -- reading ----------------------------------------------------------------------------------


def read_study(client: Any, experiment: str, parent: str, arms: Sequence[str]) -> Found:
    """The finished children of a parent run, and what it holds itself."""
    query = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'FINISHED'"
    outcomes: dict[str, dict[int, Outcome]] = {}
    for run in client.search_runs([experiment], query, order_by=["attributes.start_time ASC"]):
        arm, seed = run.data.tags[f"{TAG}.arm"], int(run.data.tags[f"{TAG}.seed"])
        outcomes.setdefault(arm, {})[seed] = _outcome(client, run)
    order = [*arms, *sorted(set(outcomes) - set(arms))]
    own = client.get_run(parent).data
    speeds = {name.removeprefix("speed/"): value for name, value in own.metrics.items() if name.startswith("speed/")}
    found = Found({arm: outcomes[arm] for arm in order if arm in outcomes}, speeds, {**own.params, **own.tags})
    for arm, by_seed in found.outcomes.items():
        _describe(found, arm, next(iter(by_seed.values())).params)
    return found


def _outcome(client: Any, run: Any) -> Outcome:
    def history(name: str) -> dict[int, float]:
        return {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}

    balance = {}
    for name in _BALANCE:
        if f"train/routing/{name}" in run.data.metrics:
            steps = history(f"train/routing/{name}")
            last = max(steps) * (1 - _LAST_SHARE)
            balance[name] = statistics.fmean(value for step, value in steps.items() if step >= last)
    return Outcome(run.data.metrics, run.data.params, balance)


def _describe(found: Found, arm: str, params: Mapping[str, str]) -> None:
    """What the arm's router says of itself."""
    from textmill.models.routing.base import build_router

    prefix = "train.model.router."
    spec = {key.removeprefix(prefix): _value(value) for key, value in params.items() if key.startswith(prefix)}
    if not spec:
        return
    router = build_router(spec, 8, int(params["train.model.experts.n_experts"]), 0)
    found.experts_per_token[arm] = router.experts_per_token
    if not router.causal_in_evaluation:
        found.looks_ahead[arm] = "always"
    elif router.looks_ahead:
        found.looks_ahead[arm] = "training"


def _value(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


# -- statistics -------------------------------------------------------------------------------


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval by Student's t; of one value alone the interval is that value."""
    from scipy.stats import sem, t

    mean = statistics.fmean(values)
    if len(values) < 2 or not (error := float(sem(values))):
        return Interval(mean, mean, mean)
    low, high = t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return Interval(mean, float(low), float(high))


def difference(found: Found, arm: str, reference: str = DENSE) -> Interval | None:
    """Loss of the arm less that of the reference, paired by seed."""
    ours, theirs = found.losses(arm), found.losses(reference)
    both = sorted(ours.keys() & theirs.keys())
    return t_interval([ours[seed] - theirs[seed] for seed in both]) if both else None


def best_router(found: Found) -> str | None:
    """The lowest mean loss among the routers whose likelihood is one."""
    means = {arm: statistics.fmean(found.losses(arm).values()) for arm in _routers(found)}
    honest = {arm: mean for arm, mean in means.items() if found.looks_ahead.get(arm) != "always"}
    return min(honest, key=lambda arm: honest[arm], default=None)


def _routers(found: Found) -> list[str]:
    return [arm for arm in found.outcomes if arm not in (DENSE, DENSE_LONGER)]


# -- writing ----------------------------------------------------------------------------------


def write_page(found: Found, page: Path, block: str, parent: StageRun) -> None:
    """Put the tables between the page's markers of this name, and the pictures beside it and into the parent run.

    Raises:
        UserError: Nothing was trained yet, or the page has no markers.
    """
    from bench.routing_pictures import balance_picture, loss_picture

    if DENSE not in found.outcomes or not _routers(found):
        raise UserError("nothing was trained yet", fix="Run without --only first")
    section = f"{_setting(found)}\n\n{loss_table(found)}\n\n{balance_table(found)}\n\n{verdict(found)}\n"
    text = page.read_text(encoding="utf-8")
    marked = re.compile(f"(<!-- {re.escape(block)} -->\n).*?(<!-- /{re.escape(block)} -->)", re.DOTALL)
    if not marked.search(text):
        raise UserError("has no markers", where=str(page), fix=f"Put <!-- {block} --> <!-- /{block} --> in")
    for name, figure in (("loss", loss_picture(found)), ("balance", balance_picture(found))):
        figure.savefig(page.with_name(f"{block}-{name}.png"), dpi=100, facecolor="white", metadata={"Software": None})
        parent.log_figure(figure, f"plots/{name}.png")
    page.write_text(marked.sub(lambda match: f"{match[1]}{section}{match[2]}", text), encoding="utf-8")


def _setting(found: Found) -> str:
    from bench.__main__ import machine

    seeds = max(len(by_seed) for by_seed in found.outcomes.values())
    about = found.about
    corpus = "Tiny Shakespeare" if about["text"] != "shakespeare" else "The embedded plays of Shakespeare"
    return (
        f"*{machine()}. {corpus}, {about['steps']} steps of {about['train.batches.tokens']} tokens, "
        f"seeds 1 to {seeds}, optimizer {about['train.optimizer.name']}.*"
    )


def title(arm: str) -> str:
    """How an arm is called on the page."""
    return TITLES.get(arm, arm)


def _marked(found: Found, arm: str) -> str:
    mark = {"always": " ‡", "training": " †"}.get(found.looks_ahead.get(arm, ""), "")
    return f"{title(arm)}{mark}" if arm in (DENSE, DENSE_LONGER) else f"`{title(arm)}`{mark}"


def _sorted(found: Found) -> list[str]:
    """The dense models, then the routers, the best first, those that see what they predict last."""

    def key(arm: str) -> tuple[bool, bool, float]:
        return (
            arm not in (DENSE, DENSE_LONGER),
            found.looks_ahead.get(arm) == "always",
            statistics.fmean(found.losses(arm).values()),
        )

    return sorted(found.outcomes, key=key)


def loss_table(found: Found) -> str:
    """Weights, loss and difference to the dense model."""
    lines = [
        "| feed-forward | experts per token, of 8 | total weights | active | validation loss | 95 % interval "
        "| minus that of dense (paired) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in _sorted(found):
        params = next(iter(found.outcomes[arm].values())).params
        loss, gap = t_interval(list(found.losses(arm).values())), difference(found, arm)
        k = found.experts_per_token.get(arm)
        told = _NOTHING if arm == DENSE or gap is None else f"{gap.value:+.4f} ({_range(gap, '+.4f')})"
        total, active = (f"{int(params[f'weights.{name}']) / 1e6:.2f} M" for name in ("total", "active"))
        lines.append(
            f"| {_marked(found, arm)} | {_number(k, 'g')} | {total} | {active} "
            f"| {loss.value:.4f} | {_range(loss, '.4f')} | {told} |"
        )
    return "\n".join(lines)


def balance_table(found: Found) -> str:
    """Load, dropped tokens and speed."""
    lines = [
        "| feed-forward | load entropy | max/mean load | the same in validation | choices dropped "
        "| tokens through no expert | choices beyond capacity 1.25 | training, tokens per processor second |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in _sorted(found):
        if arm == DENSE_LONGER:
            continue
        entropy, peak, dropped, untouched, beyond = (found.balance(arm, name) for name in _BALANCE)
        speed, dense = found.speeds.get(arm), found.speeds.get(DENSE)
        told = _NOTHING if speed is None or dense is None else f"{speed:,.0f} ({speed / dense:.2f}x)"
        validated = found.mean(arm, "final/validation/routing/load_max_over_mean")
        lines.append(
            f"| {_marked(found, arm)} | {_number(entropy, '.3f')} | {_number(peak, '.2f')} "
            f"| {_number(validated, '.2f')} "
            f"| {_number(dropped, '.1%')} | {_number(untouched, '.1%')} | {_number(beyond, '.1%')} | {told} |"
        )
    return "\n".join(lines)


def verdict(found: Found) -> str:
    """What the tables say about the best router."""
    best = best_router(found)
    gap = None if best is None else difference(found, best)
    if best is None or gap is None:
        return ""
    seeds = len(found.losses(best))
    sentences = [f"At equal steps the best router, `{title(best)}`, {_compared(gap, seeds)} dense"]
    longer = difference(found, best, DENSE_LONGER)
    if longer is not None:
        steps = next(iter(found.outcomes[DENSE_LONGER].values())).params["steps"]
        sentences.append(
            f"At equal time, for which dense gets {steps} steps instead of {found.about['steps']}, "
            f"it {_compared(longer, seeds)} dense"
        )
    return ". ".join(sentences) + "."


def _compared(gap: Interval, seeds: int) -> str:
    amount = f"{abs(gap.value):.4f} nats per token ({_range(gap, '+.4f')})"
    if seeds > 1 and gap.high < 0:
        return f"is better by {amount} than"
    if seeds > 1 and gap.low > 0:
        return f"is worse by {amount} than"
    return f"is {'lower' if gap.value < 0 else 'higher'} by {amount}, which {seeds} seed(s) cannot tell apart from,"


def _range(interval: Interval, form: str) -> str:
    return _NOTHING if interval.low == interval.high else f"{interval.low:{form}} to {interval.high:{form}}"


def _number(value: float | None, form: str) -> str:
    return _NOTHING if value is None else f"{value:{form}}"
