"""Monte Carlo tree search over partial solutions of many questions at a time (baselines, section 8a).

Here stand nodes, UCT, rollouts and their statistics; what the children of a node are is for ``expand`` to say
(`lada.tree_actions`), so nothing here knows a model or a text. All trees walk in lock step: whatever they
need next is asked of ``expand`` in one call. A tree has random numbers of its own, so it does not depend on
which others are searched beside it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from lada.config import Options, Positive, Rate, derive_seed

NodeKind = Literal["U", "RU", "OST", "SQ", "RS", "DA"]
"""Question, rephrased one, one thought step, sub-question with answer, re-answered one, direct answer."""
Action = Literal["A1", "A2", "A3", "A4", "A5"]
"""One more thought step; finish directly; next sub-question and its answer; re-answer it; rephrase."""
LEGAL: Mapping[NodeKind, tuple[Action, ...]] = {
    "U": ("A1", "A2", "A3", "A5"),
    "RU": ("A1", "A2", "A3"),
    "SQ": ("A1", "A2", "A3", "A4"),
    "RS": ("A1", "A2", "A3"),
    "OST": ("A1", "A2"),
    "DA": (),
}
"""Which actions may follow a node."""

S = TypeVar("S")


class RolloutOptions(Options):
    """How trees are walked. Defaults: ``rstar_lite`` (baselines, section 8b; rStar's own: 16, 5, 2).

    Attributes:
        rollouts: walks from the question to a terminal node, per question.
        depth: of the deepest nodes; one that is no full answer there earns nothing.
        exploration: c of UCT.
    """

    rollouts: Positive = 4
    depth: Positive = 3
    exploration: Rate = 2.0


@dataclass(frozen=True)
class Child(Generic[S]):
    """What an action made of a node.

    Attributes:
        reward: of a full answer, in 0..1; None: the solution goes on.
    """

    kind: NodeKind
    state: S
    reward: float | None = None


@dataclass
class Node(Generic[S]):
    """A node and its statistics.

    Attributes:
        children: places in the tree's list of nodes; None: never expanded.
        visits, total: N and Q: walks through the node, and the sum of their rewards.
    """

    kind: NodeKind
    state: S
    depth: int
    reward: float | None = None
    children: list[int] | None = None
    visits: int = 0
    total: float = 0.0


@dataclass
class Tree(Generic[S]):
    """The search tree of one question; ``nodes[0]`` is its root.

    Args:
        root: the state to begin with.
        seed: decides every random choice in this tree.
    """

    root: S
    seed: int
    nodes: list[Node[S]] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = [Node("U", self.root, 0)]
        self._random = random.Random(derive_seed(self.seed, "walk"))

    def descend(self, exploration: float) -> list[int]:
        """From the root to a node that was never visited or has no children, by UCT.

        A child without a visit comes first, at random among several; equal values go to the older child.
        """
        path = [0]
        while children := self.nodes[path[-1]].children:
            new = [child for child in children if not self.nodes[child].visits]
            if new:
                return [*path, self._random.choice(new)]
            visits = self.nodes[path[-1]].visits
            path.append(max(children, key=lambda child: uct(self.nodes[child], visits, exploration)))
        return path

    def is_bare(self, place: int, depth: int) -> bool:
        """Whether a node could have children and has not been expanded yet."""
        node = self.nodes[place]
        return node.children is None and node.reward is None and node.depth < depth

    def grow(self, place: int, children: Sequence[Child[S]]) -> None:
        """Give a node its children; without any it is a dead end, which earns nothing."""
        first, depth = len(self.nodes), self.nodes[place].depth + 1
        self.nodes += [Node(child.kind, child.state, depth, child.reward) for child in children]
        self.nodes[place].children = list(range(first, len(self.nodes)))

    def step_down(self, path: list[int]) -> bool:
        """Lengthen a path by a random child; False where it has reached its end."""
        children = self.nodes[path[-1]].children
        if not children:
            return False
        path.append(self._random.choice(children))
        return True

    def back_up(self, path: Sequence[int]) -> None:
        """Add the reward of a path's end to Q, and 1 to N, of every node on it; no discount."""
        reward = self.nodes[path[-1]].reward or 0.0
        for place in path:
            self.nodes[place].visits += 1
            self.nodes[place].total += reward

    def answers(self) -> Iterator[tuple[S, float]]:
        """State and reward of every full answer, visited or not, in order of their making."""
        for node in self.nodes:
            if node.reward is not None:
                yield node.state, node.reward


Leaf = tuple[Tree[S], int]
"""A tree and the place of the node in it that wants children."""


def uct(node: Node[S], parent_visits: int, exploration: float) -> float:
    """Q / N + c * sqrt(ln(N of the parent) / N); the node must have been visited."""
    return node.total / node.visits + exploration * math.sqrt(math.log(parent_visits) / node.visits)


def search(
    trees: Sequence[Tree[S]],
    expand: Callable[[Sequence[Leaf[S]]], Sequence[Sequence[Child[S]]]],
    options: RolloutOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Grow the trees: per rollout, go down by UCT, expand, go on by random children to a terminal, back up.

    Args:
        expand: children of each leaf, in order; called once for all trees that are at the same point.
        progress: called with (rollouts done, all rollouts) after every call of ``expand``.
    """
    for number in range(options.rollouts):
        walks = [(tree, tree.descend(options.exploration)) for tree in trees]
        going = walks
        while going:
            bare = [(tree, path[-1]) for tree, path in going if tree.is_bare(path[-1], options.depth)]
            if bare:
                for (tree, place), children in zip(bare, expand(bare), strict=True):
                    tree.grow(place, children)
                if progress is not None:
                    progress(number, options.rollouts)
            going = [(tree, path) for tree, path in going if tree.step_down(path)]
        for tree, path in walks:
            tree.back_up(path)
    if progress is not None:
        progress(options.rollouts, options.rollouts)
