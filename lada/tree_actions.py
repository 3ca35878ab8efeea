"""The actions of the tree search (baselines, section 8a), carried out by a language model.

A1, A2 and A4 continue the solution, A3 the trace of sub-questions (`lada.tree_texts`). What is handed on at
the end is always a solution, the form that clients are trained and tested on.

Choices, where rStar's code fits neither multiple choice nor the lab:
- A sub-question is also the last one when its answers end the solution with a letter: lab models never
  repeat a question. Its reward is then the share among ``votes`` answers.
- A thought step that ends the solution is a full answer; its reward is the share of its parent's A2
  completions that give the same letter.
- Equal children of a node are one child. A completion that is of no use (token limit, no letter) counts
  among the votes, for nobody.
- A3's prompt shows no demo, since the demo is no trace of sub-questions. A5 keeps the options as they are;
  lab models cannot rephrase.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field, field_validator

from lada.config import GenerationOptions, Positive, derive_seed
from lada.errors import ConfigError
from lada.generation import Generated, generate
from lada.language_model import LanguageModel
from lada.prompts import join, prompt
from lada.records import Item, Letter, Question
from lada.resume import Resume
from lada.tree_search import LEGAL, Action, Child, Leaf, NodeKind, RolloutOptions, Tree
from lada.tree_texts import FORMS, Answer, Thought, most_frequent, read_answer, restates

Votes = Annotated[int, Field(ge=4)]
"""Below four, a unanimous vote means nothing (baselines, section 8e)."""


class SearchOptions(RolloutOptions):
    """The generator: ``rstar_lite`` by default (baselines, section 8b).

    Attributes:
        rollouts: walks from the question to a terminal node, per question; rStar: 16.
        depth: of the deepest nodes; one that is no full answer there earns nothing; rStar: 5.
        exploration: c of UCT.
        actions: what may follow a node: A1 one more thought step, A2 finish directly, A3 next sub-question
            and its answer, A4 answer the last sub-question again, A5 rephrase the question (not in the lab);
            rStar: all.
        thoughts: thought steps drawn by A1; rStar: 3.
        sub_questions: sub-questions drawn by A3; rStar: 3.
        votes: answers drawn per sub-question, the most frequent one counts; rStar: 10.
        final_votes: answers drawn to the whole question; rStar: 32.
        temperature: of all drawing.
        top_k: most tokens to draw from.
        top_p: share of probability to draw from.
    """

    actions: tuple[Action, ...] = ("A1", "A2", "A3")
    thoughts: Positive = 2
    sub_questions: Positive = 2
    votes: Votes = 4
    final_votes: Votes = 8
    temperature: Annotated[float, Field(gt=0)] = 0.8
    top_k: Positive | None = 40
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95

    @field_validator("actions")
    @classmethod
    def _can_finish(cls, actions: tuple[Action, ...]) -> tuple[Action, ...]:
        if "A2" not in actions or len(set(actions)) < len(actions):
            raise ValueError("each action once, and A2 among them: without it a tree may hold no answer")
        return actions


@dataclass(frozen=True)
class Partial:
    """A partial solution; a whole one has ``text`` and ``letter``.

    Attributes:
        question: as the model reads it, perhaps rephrased.
    """

    question: Question
    steps: tuple[Thought, ...] = ()
    text: str = ""
    letter: Letter | None = None


@dataclass(frozen=True)
class Solution:
    """A full answer that a search found; ``reward``: share of the votes for it."""

    text: str
    letter: Letter
    reward: float


@dataclass(frozen=True)
class _Request:
    prompt: str
    begun: str
    stop: str | None
    seed: int

    def times(self, count: int) -> list[_Request]:
        """The same request with seeds of their own."""
        return [replace(self, seed=derive_seed(self.seed, number)) for number in range(count)]


@dataclass
class Expander:
    """Makes the children of many trees' leaves with two calls of `generate`.

    Args:
        generation: token limit and number of rows; how to draw stands in ``options``.
        template, demo: of the prompts.
        progress: called with (done, all) completions of the present call.
        resume: may pause this after any token and go on there.

    Attributes:
        drawn, dropped: completions so far, and how many of them were of no use.

    Raises:
        ConfigError: for A5 in the lab.
    """

    model: LanguageModel
    options: SearchOptions
    generation: GenerationOptions
    template: str
    demo: Item | None = None
    progress: Callable[[int, int], None] | None = None
    resume: Resume | None = None
    drawn: int = field(default=0, init=False)
    dropped: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if "A5" in self.options.actions and self.template == "lab":
            raise ConfigError("method.search.actions: lab models cannot rephrase a question (A5)")
        self._form = FORMS[self.template]
        how = {key: getattr(self.options, key) for key in ("temperature", "top_k", "top_p")}
        self._sampling = self.generation.model_copy(update=how)

    def __call__(self, leaves: Sequence[Leaf[Partial]]) -> list[list[Child[Partial]]]:
        """Children of each leaf, in the order of the actions."""
        wanted = [self._first_requests(tree, place) for tree, place in leaves]
        drawn = self._draw([list(one.values()) for one in wanted])
        firsts = [dict(zip(one, own, strict=True)) for one, own in zip(wanted, drawn, strict=True)]
        asks = [self._asks(first.get("A3", [])) for first in firsts]
        answers = self._draw(
            [
                [self._answer_requests(tree, place, ask) for ask in own]
                for (tree, place), own in zip(leaves, asks, strict=True)
            ]
        )
        return [
            self._children(tree.nodes[place].state, first, dict(zip(own, second, strict=True)))
            for (tree, place), first, own, second in zip(leaves, firsts, asks, answers, strict=True)
        ]

    # -- requests

    def _first_requests(self, tree: Tree[Partial], place: int) -> dict[Action, list[_Request]]:
        """What is drawn at once: everything but the answers to A3's sub-questions."""
        node = tree.nodes[place]
        return {
            action: self._request(node.state, action, derive_seed(tree.seed, place, action))
            for action in LEGAL[node.kind]
            if action in self.options.actions
        }

    def _request(self, state: Partial, action: Action, seed: int) -> list[_Request]:
        form, options = self._form, self.options
        solve, begun = self._prompt(state, "thoughts"), form.solution(state.steps)
        match action:
            case "A1":
                return _Request(solve, begun, form.stop, seed).times(options.thoughts)
            case "A2":
                return _Request(solve, begun, None, seed).times(options.final_votes)
            case "A3":
                asking, trace = self._prompt(state, "asking"), form.trace(state.steps)
                return _Request(asking, trace, form.ask_stop, seed).times(options.sub_questions)
            case "A4":
                *before, last = state.steps
                again = form.solution(before, form.answered(last.ask or "", ""))
                return _Request(solve, again, form.stop, seed).times(options.votes)
            case "A5":
                return _Request(self._prompt(state, "rephrase"), "", "\n", seed).times(1)

    def _answer_requests(self, tree: Tree[Partial], place: int, ask: str) -> list[_Request]:
        """Final votes, up to the end of the solution, if the sub-question is the question itself."""
        state = tree.nodes[place].state
        last = any(restates(ask, one.question) for one in (tree.root.question, state.question))
        begun, stop = self._form.trace(state.steps, ask), None if last else self._form.stop
        seed = derive_seed(tree.seed, place, "answer", ask)
        request = _Request(self._prompt(state, "asking"), begun, stop, seed)
        return request.times(self.options.final_votes if last else self.options.votes)

    def _prompt(self, state: Partial, cue: str) -> str:
        demo = self.demo if cue == "thoughts" else None
        return prompt(state.question, template=self.template, demo=demo, cue=cue)

    def _draw(self, wanted: Sequence[Sequence[Sequence[_Request]]]) -> list[list[list[Generated]]]:
        """Completions of nested requests, all in one call."""
        flat = [one for groups in wanted for group in groups for one in group]
        found = iter(
            generate(
                self.model,
                [one.prompt for one in flat],
                self._sampling,
                seed=[one.seed for one in flat],
                partials=[join(one.begun, self.template) if one.begun else "" for one in flat],
                stops=[one.stop for one in flat],
                progress=self.progress,
                resume=self.resume,
            )
        )
        self.drawn += len(flat)
        return [[[next(found) for _ in group] for group in groups] for groups in wanted]

    # -- children

    def _asks(self, drawn: Sequence[Generated]) -> list[str]:
        """Sub-questions that came to their end, each once."""
        whole = [one.added for one in drawn if one.stopped]
        self.dropped += len(drawn) - len(whole)
        return list(dict.fromkeys(whole))

    def _answers(self, state: Partial, drawn: Sequence[Generated]) -> list[Answer | None]:
        found = [read_answer(one, state.question) for one in drawn]
        self.dropped += found.count(None)
        return found

    def _children(
        self,
        state: Partial,
        first: Mapping[Action, Sequence[Generated]],
        answers: Mapping[str, Sequence[Generated]],
    ) -> list[Child[Partial]]:
        finished = self._answers(state, first.get("A2", ()))
        thoughts = self._answers(state, first.get("A1", ()))
        found = [_thought(state, one, finished) for one in thoughts]
        found.append(self._best(state, "DA", finished))
        for ask, drawn in answers.items():
            asked = replace(state, steps=(*state.steps, Thought("", ask)))
            found.append(self._best(asked, "SQ", self._answers(state, drawn)))
        if "A4" in first:
            found.append(self._best(state, "RS", self._answers(state, first["A4"])))
        for one in first.get("A5", ()):
            whole = one.added if one.stopped or one.finished else ""
            stem = state.question.model_copy(update={"question": whole})
            found.append(Child("RU", Partial(stem)) if whole else None)
        kept: dict[tuple[NodeKind, Partial], Child[Partial]] = {}
        for child in found:
            if child is not None:
                kept.setdefault((child.kind, child.state), child)
        return list(kept.values())

    def _best(
        self, state: Partial, kind: NodeKind, answers: Sequence[Answer | None]
    ) -> Child[Partial] | None:
        """The most frequent answer as a child; for SQ and RS it answers the last step of ``state``."""
        best = most_frequent(answers)
        if best is None:
            return None
        answer, share = best[0], best[1] / len(answers)
        if kind == "DA":
            return Child(kind, replace(state, text=answer.text, letter=answer.letter), share)
        *before, last = state.steps
        if answer.letter is None:
            return Child(kind, replace(state, steps=(*before, Thought(answer.added, last.ask))))
        text = self._form.solution(before, self._form.answered(last.ask or "", answer.added))
        return Child(kind, replace(state, text=text, letter=answer.letter), share)


def _thought(
    state: Partial, answer: Answer | None, finished: Sequence[Answer | None]
) -> Child[Partial] | None:
    """One more thought; where it ended the solution, ``finished`` votes for it."""
    if answer is None:
        return None
    if answer.letter is None:
        return Child("OST", replace(state, steps=(*state.steps, Thought(answer.added))))
    share = sum(vote is not None and vote.letter == answer.letter for vote in finished) / len(finished)
    return Child("OST", replace(state, text=answer.text, letter=answer.letter), share)


def solutions(tree: Tree[Partial], most: int) -> list[Solution]:
    """The full answers in a tree, each text once, best reward first, older first among equals.

    Args:
        most: how many are kept.
    """
    found: dict[str, Solution] = {}
    for state, reward in sorted(tree.answers(), key=lambda answer: -answer[1]):
        assert state.letter is not None, "a full answer has a letter"
        found.setdefault(" ".join(state.text.split()), Solution(state.text, state.letter, reward))
    return list(found.values())[:most]
