"""Every error that LaDa raises on purpose.

    LadaError
    ├── ConfigError      a YAML file, an option or a command line is wrong
    ├── DataError        a dataset file or a record in it is wrong
    ├── ModelError       a model, its weights or its tokenizer is wrong
    ├── ExchangeError    a commit, a message or a payload is wrong: names party, stage, file and check
    ├── PlanError        plan.json does not fit the run
    └── StageError       a stage ended without a commit, for good

A user's mistake raises one of these; a broken invariant of ours is an ``assert``.
"""

from __future__ import annotations


class LadaError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(LadaError):
    """A configuration value, key or command line argument is not legal."""


class DataError(LadaError):
    """A dataset file cannot be used as it is."""


class ModelError(LadaError):
    """A model, its weights or its tokenizer cannot be used as it is."""


class PlanError(LadaError):
    """The plan of a run is missing or does not fit the run."""


class StageError(LadaError):
    """A stage did not commit and will not be tried again."""


class ExchangeError(LadaError):
    """Something that a party wrote was refused.

    Args:
        check: name of the check that failed, e.g. ``sha256``.
        detail: what was found and what is legal.
        party: the party that wrote it.
        stage: its stage, e.g. ``r02-learn``.
        file: the file in question, relative to the stage's folder.
    """

    def __init__(
        self, check: str, detail: str, *, party: str = "?", stage: str = "?", file: str = "?"
    ) -> None:
        super().__init__(f"{party}/{stage}/{file}: check '{check}' failed: {detail}")
        self.check, self.detail = check, detail
        self.party, self.stage, self.file = party, stage, file
