"""Options of LaDa, as a method and as a guest of other methods, and which steps a host then has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lada.config import Fraction, Options, Rate
from lada.losses import PairLoss
from lada.method import Step
from lada.pairs import Weighting
from lada.party import Party
from lada.selection.allocation import AllocationOptions

NOBODY, LADA = "none", "lada"


class LaDaOptions(AllocationOptions):
    """LaDa's options.

    Attributes:
        reasoning_distillation: False is the ablation: cross-entropy on the preferred text, no contrast.
        use_filter: False is the ablation "w/o filter": all public samples in both directions.
        server_weights: w of Eq. 4 on samples that several clients' pairs share. ``reward`` weighs by the
            predicted reward of each pair's filter (round 1 has none: uniform); ``none`` is the ablation
            "w/o sample weights": every pair counts in full.
        softmax_temperature: of ``server_weights: softmax``.
        beta: strength of the tie to the reference in Eq. 3.
        preference_weight: multiplies the preference term.
        nll_weight: adds this much cross-entropy on the preferred text (an addition to the paper).
        length_norm: log-probabilities per token instead of sums.
        label_smoothing: share of pairs assumed to be labelled the wrong way round.
        drop_ties: leave out pairs whose two texts are equal (their gradient is 0).
        entry_pass: measure the losses before the round's first step by a pass of their own; False takes
            each sample's first training loss instead.
        schedule: ``server_last`` lets the server learn after the clients, from fresh client texts.
    """

    reasoning_distillation: bool = True
    use_filter: bool = True
    server_weights: Weighting = "reward"
    softmax_temperature: Annotated[float, Field(gt=0)] = 0.1
    beta: Annotated[float, Field(gt=0)] = 0.1
    preference_weight: Rate = 1.0
    nll_weight: Rate = 0.0
    length_norm: bool = False
    label_smoothing: Fraction = 0.0
    drop_ties: bool = True
    entry_pass: bool = True
    schedule: Literal["parallel", "server_last"] = "parallel"

    @model_validator(mode="after")
    def _one_selector(self) -> LaDaOptions:
        if not self.use_filter and self.select.mode != "filter":
            raise ValueError(f"use_filter false selects all samples, select.mode {self.select.mode} does not")
        return self

    @property
    def loss(self) -> PairLoss:
        """The loss that both sides train with."""
        return PairLoss(
            kind="preference" if self.reasoning_distillation else "cross_entropy",
            beta=self.beta,
            preference_weight=self.preference_weight,
            nll_weight=self.nll_weight,
            length_norm=self.length_norm,
            label_smoothing=self.label_smoothing,
        )

    @property
    def allocation(self) -> AllocationOptions:
        """The allocation's part of the options; "w/o filter" selects everything."""
        names = AllocationOptions.model_fields
        options = AllocationOptions(**{name: getattr(self, name) for name in names})
        if self.use_filter:
            return options
        return options.model_copy(update={"select": self.select.model_copy(update={"mode": "all"})})


class HostOptions(Options):
    """Of a method that can host LaDa; its own docstring describes both fields.

    With ``plugin: lada``, ``lada`` holds LaDa's options, every default spelled out; else it is None.

    Attributes:
        KEPT: the method's own options that hold beside the guest.
        IDLE: the guest's options that do nothing here, since the host decides what they are about.
    """

    KEPT: ClassVar[Collection[str]] = ()
    IDLE: ClassVar[Collection[str]] = ()

    plugin: Literal["none", "lada"] = "none"
    lada: LaDaOptions | None = None

    @property
    def hosts(self) -> bool:
        """Whether LaDa's selection and loss stand in for the method's own."""
        return self.plugin == LADA

    @property
    def guest(self) -> LaDaOptions:
        """Options of the LaDa that is hosted."""
        assert self.lada is not None, "nobody is hosted"
        return self.lada

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("plugin") == LADA and given.get("lada") is None:
            return {**given, "lada": {}}
        return given

    @model_validator(mode="after")
    def _refuse_without_effect(self) -> HostOptions:
        if not self.hosts:
            if self.lada is not None:
                raise ValueError(f"lada.* has no effect with plugin {NOBODY}; plugin {LADA} hosts LaDa")
            return self
        own = set(type(self).model_fields) - set(HostOptions.model_fields) - set(self.KEPT)
        changed = [name for name in sorted(own) if not _is_default(self, name)]
        changed += [f"lada.{name}" for name in sorted(self.IDLE) if not _is_default(self.guest, name)]
        if changed:
            raise ValueError(f"{', '.join(changed)}: no effect with plugin {LADA}; leave it at its default")
        return self


def _is_default(options: Options, name: str) -> bool:
    return bool(getattr(options, name) == type(options).model_fields[name].default)


def lada_options(party: Party) -> LaDaOptions:
    """LaDa's options, whether it is the method or a guest."""
    options = party.options
    if isinstance(options, HostOptions):
        return options.guest
    assert isinstance(options, LaDaOptions)
    return options


def alone(*steps: Step) -> tuple[Step, ...]:
    """Steps that a host has when it hosts nobody; their conditions look at its own options."""

    def bound(step: Step) -> Step:
        return replace(step, when=lambda options: not options.hosts and step.when(options))

    return tuple(bound(step) for step in steps)


def hosted(*steps: Step) -> tuple[Step, ...]:
    """Steps that a host has when it hosts LaDa; their conditions look at LaDa's options."""

    def bound(step: Step) -> Step:
        return replace(step, when=lambda options: options.hosts and step.when(options.guest))

    return tuple(bound(step) for step in steps)
