"""The table has llama.cpp's names in llama.cpp's order, and values worked by hand."""

import math

import numpy as np
import pytest

from ensemble.errors import StatisticsError
from ensemble.fidelity import FidelityTable, fidelity_table

LN2 = math.log(2)

KLD = [0.0, 0.1, 0.2, 0.3]
SAME_TOP = [True, True, False, True]
# the token that followed: p gives it 1/2, 1/2, 1/4, 1/4; q gives it 1/2, 1/4, 1/4, 1/8
REFERENCE = [-LN2, -LN2, -2 * LN2, -2 * LN2]
CANDIDATE = [-LN2, -2 * LN2, -2 * LN2, -3 * LN2]
PROMPTS = [0, 0, 1, 1]


def small() -> FidelityTable:
    return fidelity_table(KLD, SAME_TOP, REFERENCE, CANDIDATE, PROMPTS)


def test_the_names_are_those_of_llama_cpp_in_its_order() -> None:
    """Whoever reads `llama-perplexity --kl-divergence` can read this."""
    assert [row.name for row in small().statistics] == [
        "Mean PPL(Q)",
        "Mean PPL(base)",
        "Cor(ln(PPL(Q)), ln(PPL(base)))",
        "Mean ln(PPL(Q)/PPL(base))",
        "Mean PPL(Q)/PPL(base)",
        "Mean PPL(Q)-PPL(base)",
        "Mean KLD",
        "Maximum KLD",
        "99.9% KLD",
        "99.0% KLD",
        "95.0% KLD",
        "90.0% KLD",
        "Median KLD",
        "10.0% KLD",
        "5.0% KLD",
        "1.0% KLD",
        "0.1% KLD",
        "Minimum KLD",
        "Mean Δp",
        "Maximum Δp",
        "99.9% Δp",
        "99.0% Δp",
        "95.0% Δp",
        "90.0% Δp",
        "75.0% Δp",
        "Median Δp",
        "25.0% Δp",
        "10.0% Δp",
        "5.0% Δp",
        "1.0% Δp",
        "0.1% Δp",
        "Minimum Δp",
        "RMS Δp",
        "Same top p",
    ]


def test_sections_are_those_of_llama_cpp() -> None:
    """Perplexity, divergence, token probability."""
    assert list(dict.fromkeys(row.section for row in small().statistics)) == [
        "Perplexity statistics",
        "KL divergence statistics",
        "Token probability statistics",
    ]


def test_perplexities_by_hand() -> None:
    """Mean losses of 1.5 ln 2 and 2 ln 2: perplexities 2^1.5 and 4, their ratio sqrt 2."""
    table = small()
    assert table["Mean PPL(base)"].value == pytest.approx(2**1.5)
    assert table["Mean PPL(Q)"].value == pytest.approx(4.0)
    assert table["Mean ln(PPL(Q)/PPL(base))"].value == pytest.approx(LN2 / 2)
    assert table["Mean PPL(Q)/PPL(base)"].value == pytest.approx(math.sqrt(2))
    assert table["Mean PPL(Q)-PPL(base)"].value == pytest.approx(4 - 2**1.5)
    # deviations (1, 1, -1, -1) / 2 and (1, 0, 0, -1): 1 / sqrt(1 * 2)
    assert table["Cor(ln(PPL(Q)), ln(PPL(base)))"].value == pytest.approx(100 / math.sqrt(2))


def test_divergences_by_hand() -> None:
    """The mean, the ends, and percentiles that are interpolated."""
    table = small()
    assert table["Mean KLD"].value == pytest.approx(0.15)
    assert table["Maximum KLD"].value == 0.3
    assert table["Minimum KLD"].value == 0.0
    assert table["Median KLD"].value == pytest.approx(0.15)
    assert table["90.0% KLD"].value == pytest.approx(0.27)  # position 2.7 of 0 to 3


def test_token_probabilities_by_hand() -> None:
    """Δp is 0, -25, 0 and -12.5 points; its root mean square sqrt((625 + 156.25) / 4)."""
    table = small()
    assert table["Mean Δp"].value == pytest.approx(-9.375)
    assert table["Maximum Δp"].value == pytest.approx(0.0)
    assert table["Minimum Δp"].value == pytest.approx(-25.0)
    assert table["RMS Δp"].value == pytest.approx(math.sqrt(195.3125))
    assert table["Same top p"].value == 75.0
    assert table["Same top p"].unit == "%"


def test_errors_count_prompts() -> None:
    """Of two prompts with sums of deviations ±0.2: sqrt(2 / 1 * 0.08) / 4 = 0.1."""
    assert small()["Mean KLD"].error == pytest.approx(0.1)
    alone = fidelity_table(KLD, SAME_TOP, REFERENCE, CANDIDATE, [0, 1, 2, 3])
    assert alone["Mean KLD"].error == pytest.approx(np.std(KLD, ddof=1) / 2)


def test_errors_of_functions_of_means_are_those_of_resampling() -> None:
    """The delta method's errors equal the spread over planted samples, within their noise."""
    names = ["Mean PPL(Q)", "Mean PPL(Q)/PPL(base)", "Mean PPL(Q)-PPL(base)", "RMS Δp"]
    values: dict[str, list[float]] = {name: [] for name in names}
    errors: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        base = -rng.gamma(4.0, 0.5, 100)
        other = np.minimum(base + rng.normal(-0.05, 0.1, 100), 0)
        table = fidelity_table([0.1] * 100, [True] * 100, base, other, list(range(100)))
        for name in names:
            values[name].append(table[name].value)
            errors[name].append(table[name].error or 0.0)
    for name in names:
        assert np.mean(errors[name]) == pytest.approx(np.std(values[name]), rel=0.2)


def test_a_model_against_itself() -> None:
    """No divergence, no difference, all tops the same, and the errors of the differences 0."""
    table = fidelity_table([0.0] * 4, [True] * 4, REFERENCE, REFERENCE, PROMPTS)
    assert table["Mean KLD"].value == table["RMS Δp"].value == table["RMS Δp"].error == 0
    assert table["Mean PPL(Q)/PPL(base)"].value == 1
    assert table["Mean PPL(Q)/PPL(base)"].error == 0
    assert table["Same top p"].value == 100
    assert table["Cor(ln(PPL(Q)), ln(PPL(base)))"].value == pytest.approx(100)


def test_without_spread_there_is_no_correlation() -> None:
    """A constant has none, and the row is left out rather than NaN."""
    table = fidelity_table([0.0] * 2, [True] * 2, [-1.0] * 2, [-2.0, -1.0], [0, 1])
    assert not [row for row in table.statistics if row.name.startswith("Cor")]


def test_one_prompt_has_infinite_errors() -> None:
    """Positions of one text are no sample of texts."""
    table = fidelity_table(KLD, SAME_TOP, REFERENCE, CANDIDATE, [0] * 4)
    assert table["Mean KLD"].error == math.inf
    assert (table.num_positions, table.num_prompts) == (4, 1)


def test_the_text_is_llama_cpps_but_for_padding() -> None:
    """Headings in ======, six digits for nats, three and a sign for percent."""
    lines = small().text().splitlines()
    assert lines[0] == "====== Perplexity statistics ======"
    assert "Mean KLD: 0.150000 ± 0.100000" in lines
    assert "Maximum KLD: 0.300000" in lines
    assert "Same top p: 75.000 ± 25.000 %" in lines
    assert "Median Δp: -6.250 %" in lines


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_named(wrong: float) -> None:
    """An infinite divergence has no mean: its position is in the message."""
    with pytest.raises(StatisticsError, match=f"the value at position 2 is {wrong}"):
        fidelity_table([0.0, 0.1, wrong, 0.3], SAME_TOP, REFERENCE, CANDIDATE, PROMPTS)


def test_no_positions_are_an_error() -> None:
    """There is nothing to tabulate."""
    with pytest.raises(StatisticsError, match="no positions"):
        fidelity_table([], [], [], [], [])
