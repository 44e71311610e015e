"""The table that llama.cpp's `--kl-divergence` prints, under its names, from per-position values.

"base" is the reference p and "Q" the candidate q; KLD is KL(p‖q) in nats, and Δp is by how much
q gives the token that followed more probability than p, in percent. What differs from llama.cpp:
the errors after ± count prompts, not tokens, as evidence (`clustered_error`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemble.errors import StatisticsError
from ensemble.statistics import Array, Values, clustered_error

_KLD_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)
_DELTA_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)


@dataclass(frozen=True, slots=True)
class Statistic:
    """One row: a `value` in `unit` ("" or "%"), and its standard error where it has one."""

    section: str
    name: str
    value: float
    error: float | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True)
class FidelityTable:
    """How faithful a candidate is to a reference, in llama.cpp's order."""

    statistics: tuple[Statistic, ...]
    num_positions: int
    num_prompts: int

    def __getitem__(self, name: str) -> Statistic:
        """The row of this name, with single spaces: "Mean KLD"."""
        return next(row for row in self.statistics if row.name == name)

    def text(self) -> str:
        """The table as llama.cpp prints it, but for padding."""
        lines: list[str] = []
        section = ""
        for row in self.statistics:
            if row.section != section:
                section = row.section
                lines.append(f"====== {section} ======")
            digits = 3 if row.unit else 6
            error = "" if row.error is None else f" ± {row.error:.{digits}f}"
            lines.append(f"{row.name}: {row.value:.{digits}f}{error}{row.unit and f' {row.unit}'}")
        return "\n".join(lines)


def fidelity_table(
    kld: Values,
    same_top: Sequence[bool] | npt.NDArray[np.bool_],
    reference_log_probs: Values,
    candidate_log_probs: Values,
    prompts: Sequence[int],
) -> FidelityTable:
    """Tabulate positions of one or more prompts, all arguments [positions].

    `kld`: `Divergences.forward_kl`; `same_top`: `Divergences.same_top`; the log-probabilities are
    those of the token that followed, under each model; `prompts`: which prompt a position is of.
    Raises StatisticsError if there are no positions or a value is not finite.
    """
    divergence, base, other = (_array(v) for v in (kld, reference_log_probs, candidate_log_probs))
    top = np.asarray(same_top, dtype=np.float64)
    assert len(divergence) == len(base) == len(other) == len(top) == len(prompts)
    rows = [
        *_perplexity(base, other, prompts),
        *_divergence(divergence, prompts),
        *_probability(np.exp(other) - np.exp(base), top, prompts),
    ]
    return FidelityTable(tuple(rows), len(divergence), len(set(prompts)))


def _perplexity(base: Array, other: Array, prompts: Sequence[int]) -> Iterator[Statistic]:
    """`base`, `other`: log-probabilities. Errors of functions of means by the delta method."""
    section = "Perplexity statistics"
    ppl_base, ppl_other = math.exp(-base.mean()), math.exp(-other.mean())
    log_ratio = float((base - other).mean())
    ratio_error = clustered_error(base - other, prompts)

    def row(name: str, value: float, error: float | None, unit: str = "") -> Statistic:
        return Statistic(section, name, value, error, unit)

    yield row("Mean PPL(Q)", ppl_other, ppl_other * clustered_error(other, prompts))
    yield row("Mean PPL(base)", ppl_base, ppl_base * clustered_error(base, prompts))
    if np.ptp(base) > 0 and np.ptp(other) > 0:
        correlation = float(np.corrcoef(base, other)[0, 1])
        yield row("Cor(ln(PPL(Q)), ln(PPL(base)))", 100 * correlation, None, "%")
    yield row("Mean ln(PPL(Q)/PPL(base))", log_ratio, ratio_error)
    ratio = math.exp(log_ratio)
    yield row("Mean PPL(Q)/PPL(base)", ratio, ratio * ratio_error)
    influence = ppl_base * base - ppl_other * other
    yield row("Mean PPL(Q)-PPL(base)", ppl_other - ppl_base, clustered_error(influence, prompts))


def _divergence(kld: Array, prompts: Sequence[int]) -> Iterator[Statistic]:
    section = "KL divergence statistics"
    yield Statistic(section, "Mean KLD", float(kld.mean()), clustered_error(kld, prompts))
    yield Statistic(section, "Maximum KLD", float(kld.max()))
    for percentile in _KLD_PERCENTILES:
        name = f"{_percentile_name(percentile)} KLD"
        yield Statistic(section, name, float(np.percentile(kld, percentile)))
    yield Statistic(section, "Minimum KLD", float(kld.min()))


def _probability(delta: Array, same_top: Array, prompts: Sequence[int]) -> Iterator[Statistic]:
    section, delta = "Token probability statistics", 100 * delta

    def row(name: str, value: float, error: float | None = None) -> Statistic:
        return Statistic(section, name, value, error, "%")

    yield row("Mean Δp", float(delta.mean()), clustered_error(delta, prompts))
    yield row("Maximum Δp", float(delta.max()))
    for percentile in _DELTA_PERCENTILES:
        name = f"{_percentile_name(percentile)} Δp"
        yield row(name, float(np.percentile(delta, percentile)))
    yield row("Minimum Δp", float(delta.min()))
    square = delta**2
    rms = math.sqrt(square.mean())
    yield row("RMS Δp", rms, clustered_error(square, prompts) / (2 * rms) if rms else 0.0)
    top = 100 * same_top
    yield row("Same top p", float(top.mean()), clustered_error(top, prompts))


def _percentile_name(percentile: float) -> str:
    return "Median" if percentile == 50 else f"{percentile:.1f}%"


def _array(values: Values) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise StatisticsError("there are no positions to tabulate")
    if wrong := np.flatnonzero(~np.isfinite(array)).tolist():
        raise StatisticsError(f"the value at position {wrong[0]} is {array[wrong[0]]}")
    return array
