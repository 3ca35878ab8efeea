"""What a matrix file says: which arms are compared, on which scenarios, datasets, shots and seeds.

``configs/matrices/<name>.yaml`` either holds its arms itself, or lists names of arms that
``configs/arms/<tier>.yaml`` holds: how each method runs on that tier. The second form is the same for all
tiers, and arms of two matrices with the same settings are the same runs. A third form only lists other
matrices (``matrices: [table2, table3]``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lada.config import SERVER, Options
from lada.errors import ConfigError
from lada.layers import CONFIGS, read_yaml, shipped, validate

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_+.-]{0,47}$")]
Filled = Annotated[tuple[Any, ...], Field(min_length=1)]
Models = Annotated[tuple[str, ...], Field(min_length=2)]


class Arm(Options):
    """What is compared.

    Attributes:
        method: as METHOD=.
        settings: as SET=, dotted key -> value.
        replays: dotted key of an option that takes a run -> the arm whose run of the same cell it takes.
        label: what tables call the arm; None: its name.
        tuned: the arm of the tuning matrix whose rates this one takes.
    """

    method: str
    settings: Mapping[str, Any] = {}
    replays: Mapping[str, str] = {}
    label: str | None = None
    tuned: str | None = None


class Arms(Options):
    """A file of configs/arms: how a tier runs what matrices name; ``like: paper`` has what it does not say.

    Attributes:
        size: where the matrix and the command line say none.
        datasets: what matrices call a kind of questions -> the tier's dataset.
        settings: of all runs.
        sizes: size -> settings of runs of that size.
    """

    size: str
    datasets: Mapping[str, str]
    settings: Mapping[str, Any] = {}
    sizes: Mapping[str, Mapping[str, Any]] = {}
    arms: Annotated[Mapping[Name, Arm], Field(min_length=1)]


class Listed(Options):
    """A file of configs/matrices that lists others."""

    matrices: Annotated[tuple[str, ...], Field(min_length=1)]


class Matrix(Options):
    """A file of configs/matrices, its arms looked up.

    Attributes:
        settings: of all runs; an arm's own come after them.
        grid: dotted key -> values; every arm runs at every combination.
        federations: scenario that has no file -> its models, the server's first.
        contrasts: pairs of arms to be compared question by question.
    """

    tier: str = "lab"
    size: str = "quick"
    settings: Mapping[str, Any] = {}
    scenarios: Annotated[tuple[str, ...], Field(min_length=1)]
    datasets: Annotated[tuple[str, ...], Field(min_length=1)] = ("lab-math",)
    shots: Annotated[tuple[Literal[0, 1], ...], Field(min_length=1)] = (0,)
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    arms: Annotated[Mapping[Name, Arm], Field(min_length=1)]
    grid: Mapping[str, Filled] = {}
    federations: Mapping[str, Models] = {}
    contrasts: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def _arms_exist(self) -> Matrix:
        for name in itertools.chain(*self.contrasts):
            if name not in self.arms:
                raise ValueError(f"contrasts name '{name}'; arms here: {', '.join(self.arms)}")
        for name, arm in self.arms.items():
            for source in arm.replays.values():
                if source not in self.arms:
                    raise ValueError(f"arm {name} replays '{source}'; arms here: {', '.join(self.arms)}")
                if self.arms[source].replays:
                    raise ValueError(f"arm {name} replays '{source}', which itself replays another")
        return self

    def label(self, arm: str) -> str:
        """What tables call an arm."""
        return self.arms[arm].label or arm

    def parties(self, scenario: str) -> list[dict[str, str]] | None:
        """Parties of a scenario that has no file of its own; None: it has one."""
        models = self.federations.get(scenario)
        if models is None:
            return None
        names = [SERVER, *(f"client-{number}" for number in range(1, len(models)))]
        return [{"name": name, "model": model} for name, model in zip(names, models, strict=True)]


def read_matrices(
    name: str, configs: Path = CONFIGS, *, tier: str | None = None, size: str | None = None
) -> dict[str, Matrix]:
    """The matrices that a file lists, by name; of any other file the one that it is.

    Args:
        tier, size: see `read_matrix`.

    Raises:
        ConfigError: as `read_matrix`, and where a list holds anything else than names.
    """
    path = shipped("matrices", name, configs)
    content = read_yaml(path)
    if "matrices" not in content:
        return {path.stem: read_matrix(name, configs, tier=tier, size=size)}
    listed = validate(Listed, content, {key: str(path) for key in content})
    return {one: read_matrix(one, configs, tier=tier, size=size) for one in listed.matrices}


def read_matrix(
    name: str, configs: Path = CONFIGS, *, tier: str | None = None, size: str | None = None
) -> Matrix:
    """A matrix by its name in configs/matrices, or by the path of a YAML file; not one that lists others.

    Args:
        tier: whose arms a matrix takes that lists names only; None: as the file says, else lab.
        size: in place of the file's.

    Raises:
        ConfigError: it is not there, or not a matrix, or of another tier.
    """
    path = shipped("matrices", name, configs)
    content = dict(read_yaml(path))
    sources = {key: str(path) for key in content}
    own = content.get("tier")
    if tier is not None and own is not None and own != tier:
        raise ConfigError(f"{path} is of tier {own}, not {tier}")
    if isinstance(content.get("arms"), list):
        content = _looked_up(content, path, tier or own or "lab", size, configs)
    elif tier is not None and own is None:
        content["tier"] = tier
    if size is not None:
        content["size"] = size
    return validate(Matrix, content, sources)


def _looked_up(
    content: Mapping[str, Any], path: Path, tier: str, size: str | None, configs: Path
) -> dict[str, Any]:
    """A matrix file's content with what its names of arms and kinds of questions mean on a tier.

    Raises:
        ConfigError: the tier has no such arm or dataset.
    """
    file = shipped("arms", tier, configs)
    raw = dict(read_yaml(file))
    if "like" in raw:
        raw = {**read_yaml(shipped("arms", str(raw.pop("like")), configs)), **raw}
    known = validate(Arms, raw, {key: str(file) for key in raw})
    size = size or content.get("size") or known.size
    settings = {**known.settings, **known.sizes.get(size, {}), **content.get("settings", {})}
    kinds = content.get("datasets", list(known.datasets)[:1])
    found = {
        "tier": tier,
        "size": size,
        "settings": settings,
        "datasets": [_one_of(known.datasets, kind, "dataset", path, file) for kind in kinds],
        "arms": {
            arm: _one_of(known.arms, arm, "arm", path, file).model_dump(exclude_unset=True)
            for arm in content["arms"]
        },
    }
    return {**content, **found}


def _one_of(known: Mapping[str, Any], name: Any, what: str, path: Path, file: Path) -> Any:
    if name not in known:
        raise ConfigError(f"{path} names the {what} '{name}'; {file} has: {', '.join(known)}")
    return known[name]


def of_one_place(matrix: Matrix) -> bool:
    """Whether all its runs are of one scenario, one dataset and one number of shots."""
    axes: tuple[Sequence[Any], ...] = (matrix.scenarios, matrix.datasets, matrix.shots)
    return max(map(len, axes)) == 1
