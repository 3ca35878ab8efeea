"""The bilevel toy of the paper's Section V: gradient norms fall like 1/sqrt(T) (method page, property 20)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lada import toy_pool
from lada.convergence import (
    HORIZONS,
    SIZE,
    Bilevel,
    Point,
    last_doubling,
    main,
    means,
    measure,
    read,
    slope,
    upper_half,
    write,
)
from lada.errors import DataError


@pytest.fixture(scope="module")
def points() -> list[Point]:
    return measure()


def test_gradient_is_exact_at_the_lower_solutions() -> None:
    problem = Bilevel(0)
    phi = np.random.default_rng(1).normal(size=SIZE)
    numeric = [(problem.value(phi + h) - problem.value(phi - h)) / 2e-6 for h in 1e-6 * np.eye(SIZE)]
    assert np.allclose(problem.gradient(problem.solutions(phi)), numeric, atol=1e-6)


def test_mean_square_gradient_falls_like_one_over_the_root_of_the_horizon(points: list[Point]) -> None:
    unbiased = means(points, "unbiased")
    assert tuple(unbiased) == HORIZONS
    assert -0.75 <= slope(unbiased) <= -0.4, unbiased
    assert -0.75 <= slope(upper_half(unbiased)) <= -0.4, unbiased


def test_a_biased_selector_flattens_the_curve(points: list[Point]) -> None:
    unbiased, biased = means(points, "unbiased"), means(points, "biased")
    assert last_doubling(biased) > last_doubling(unbiased) + 0.1
    assert biased[HORIZONS[-1]] > 2 * unbiased[HORIZONS[-1]]


def test_a_constant_step_has_a_floor(points: list[Point]) -> None:
    unbiased, constant = means(points, "unbiased"), means(points, "constant-step")
    assert constant[HORIZONS[0]] == unbiased[HORIZONS[0]], "the two differ in nothing there"
    assert constant[HORIZONS[-1]] > unbiased[HORIZONS[-1]]
    assert abs(last_doubling(constant)) < 0.3


def test_slopes_of_known_curves() -> None:
    power = {horizon: 3 * horizon**-0.5 for horizon in HORIZONS}
    bent = power | {HORIZONS[0]: 100.0}
    assert slope(power) == pytest.approx(-0.5)
    assert list(upper_half(bent)) == [1024, 2048, 4096]
    assert slope(upper_half(bent)) == pytest.approx(-0.5), "the start does not count"
    assert slope(bent) < -0.5
    assert last_doubling({1: 9.0, 2: 8.0, 4: 2.0}) == pytest.approx(-2)


def test_points_are_written_and_read_back(tmp_path: Path, points: list[Point]) -> None:
    slopes = write(points, tmp_path / "convergence.csv")
    again = read(tmp_path / "convergence.csv")
    assert [(one.control, one.horizon, one.seed) for one in again] == [
        (one.control, one.horizon, one.seed) for one in points
    ]
    assert [one.value for one in again] == pytest.approx([one.value for one in points], rel=1e-8)
    lines = slopes.read_text().splitlines()
    assert lines[0] == "control,slope,from_horizon,slope_of_all,last_doubling"
    assert [line.split(",")[0] for line in lines[1:]] == ["unbiased", "biased", "constant-step"]
    _, fitted, start, of_all, last = lines[3].split(",")
    curve = means(points, "constant-step")
    assert int(start) == HORIZONS[len(HORIZONS) // 2]
    assert float(fitted) == pytest.approx(slope(upper_half(curve)), abs=1e-4), "what the figure shows"
    assert float(of_all) == pytest.approx(slope(curve), abs=1e-4)
    assert float(last) == pytest.approx(last_doubling(curve), abs=1e-4)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"columns \['a', 'b'\]"):
        read(tmp_path / "other.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "none.csv")


@pytest.mark.parametrize("line", ["unbiased,abc,0,1", "unbiased,4,0,much"])
def test_a_word_for_a_number_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text(f"control,horizon,seed,mean_square_gradient\nunbiased,4,0,1\n{line}\n")
    with pytest.raises(DataError, match=r"c\.csv, line 3: .*(abc|much)"):
        read(path)


def test_the_command_writes_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = measure(horizons=(4, 8, 16), seeds=(0,))
    few = toy_pool.measure(seeds=(0,))
    monkeypatch.setattr("lada.convergence.measure", lambda: quick)
    monkeypatch.setattr("lada.toy_pool.measure", lambda: few)
    assert main(["--out", str(tmp_path / "toy.csv")]) == 0
    assert len(read(tmp_path / "toy.csv")) == 9
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "toy-slopes.csv").read_text() + "\n" + (tmp_path / "toy-pool.csv").read_text()
