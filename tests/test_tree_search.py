"""The tree search against a slow, obvious implementation; lock step; what a walk may and may not do."""

from __future__ import annotations

import math
import random

import pytest

from lada.config import derive_seed
from lada.tree_search import LEGAL, Child, Leaf, Node, RolloutOptions, Tree, search, uct

Path = tuple[int, ...]
"""A node's name: which child of which child it is. It is the state of these trees."""


class Table:
    """Random children and rewards: 0 to 4 children of any node, a third of them full answers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.calls = 0

    def children(self, path: Path) -> list[tuple[Path, float | None]]:
        draw = random.Random(derive_seed(self.seed, path))
        rewards = [draw.choice((None, None, round(draw.random(), 3))) for _ in range(draw.randint(0, 4))]
        return [((*path, place), reward) for place, reward in enumerate(rewards)]

    def __call__(self, leaves: list[Leaf[Path]]) -> list[list[Child[Path]]]:
        self.calls += 1
        return [
            [Child("OST", path, reward) for path, reward in self.children(tree.nodes[place].state)]
            for tree, place in leaves
        ]


def slow(table: Table, seed: int, options: RolloutOptions) -> dict[Path, tuple[int, float]]:
    """Keeps nothing but the list of walks; counts everything anew whenever it is asked."""
    chance = random.Random(derive_seed(seed, "walk"))
    walks: list[list[tuple[Path, float | None]]] = []

    def visits(path: Path) -> int:
        return sum(1 for walk in walks if path in [name for name, _ in walk])

    def earned(path: Path) -> float:
        return sum(walk[-1][1] or 0.0 for walk in walks if path in [name for name, _ in walk])

    def value(path: Path) -> float:
        n, parent = visits(path), visits(path[:-1])
        return earned(path) / n + options.exploration * math.sqrt(math.log(parent) / n)

    def below(path: Path, reward: float | None) -> list[tuple[Path, float | None]]:
        return [] if reward is not None or len(path) >= options.depth else table.children(path)

    for _ in range(options.rollouts):
        walk: list[tuple[Path, float | None]] = [((), None)]
        selecting = bool(walks)  # at first nothing is known below the root
        while children := below(*walk[-1]):
            new = [child for child in children if not visits(child[0])]
            if selecting and not new:
                values = [value(path) for path, _ in children]
                walk.append(children[values.index(max(values))])
            elif selecting:
                walk.append(chance.choice(new))
                selecting = False
            else:
                walk.append(chance.choice(children))
        walks.append(walk)
    names = {name for walk in walks for name, _ in walk}
    return {name: (visits(name), earned(name)) for name in names}


def statistics(tree: Tree[Path]) -> dict[Path, tuple[int, float]]:
    return {node.state: (node.visits, node.total) for node in tree.nodes if node.visits}


@pytest.mark.parametrize("seed", range(100))
def test_statistics_equal_those_of_the_slow_implementation(seed: int) -> None:
    draw = random.Random(seed)
    options = RolloutOptions(
        rollouts=draw.randint(1, 40), depth=draw.randint(1, 5), exploration=draw.choice((0.0, 0.5, 2.0))
    )
    table, tree = Table(seed), Tree[Path]((), seed)
    search([tree], table, options)
    expected = slow(table, seed, options)
    assert statistics(tree).keys() == expected.keys()
    for path, (visits, total) in statistics(tree).items():
        assert (visits, total) == (expected[path][0], pytest.approx(expected[path][1], abs=1e-9)), path
    assert tree.nodes[0].visits == options.rollouts


def test_the_random_tables_are_worth_the_comparison() -> None:
    """Most trees branch, revisit nodes and earn something."""
    options = RolloutOptions(rollouts=30, depth=4)
    trees = [Tree[Path]((), seed) for seed in range(100)]
    for tree in trees:
        search([tree], Table(tree.seed), options)
    assert sum(len(statistics(tree)) > 8 for tree in trees) > 50
    assert sum(tree.nodes[0].total > 0 for tree in trees) > 50


def test_lock_step_changes_no_tree_and_asks_once_for_all() -> None:
    options = RolloutOptions(rollouts=12, depth=4)
    together = [Tree[Path]((), seed) for seed in range(20)]
    one = _PerTree({id(tree): Table(tree.seed) for tree in together})
    search(together, one, options)
    calls = 0
    for tree in together:
        alone, table = Tree[Path]((), tree.seed), Table(tree.seed)
        search([alone], table, options)
        calls += table.calls
        assert statistics(alone) == statistics(tree)
        assert [node.state for node in alone.nodes] == [node.state for node in tree.nodes]
    assert one.calls <= options.rollouts * options.depth < calls


class _PerTree:
    def __init__(self, tables: dict[int, Table]) -> None:
        self.tables, self.calls = tables, 0

    def __call__(self, leaves: list[Leaf[Path]]) -> list[list[Child[Path]]]:
        self.calls += 1
        return [self.tables[id(tree)]([(tree, place)])[0] for tree, place in leaves]


def test_uct_by_hand() -> None:
    node = Node("OST", (), 1, visits=4, total=3.0)
    assert uct(node, 10, 2.0) == pytest.approx(0.75 + 2 * math.sqrt(math.log(10) / 4))
    assert uct(node, 10, 0.0) == 0.75


def test_every_child_is_tried_before_one_is_tried_again() -> None:
    def expand(leaves: list[Leaf[str]]) -> list[list[Child[str]]]:
        return [[Child("DA", name, reward) for name, reward in (("a", 1.0), ("b", 0.0), ("c", 0.5))]] * len(
            leaves
        )

    tree = Tree("root", 3)
    search([tree], expand, RolloutOptions(rollouts=3, depth=3))
    assert [node.visits for node in tree.nodes] == [3, 1, 1, 1]
    assert tree.nodes[0].total == 1.5
    greedy = Tree("root", 3)
    search([greedy], expand, RolloutOptions(rollouts=33, depth=3, exploration=0.0))
    assert [node.visits for node in greedy.nodes] == [33, 31, 1, 1]
    assert sorted(tree.answers()) == [("a", 1.0), ("b", 0.0), ("c", 0.5)]


def test_what_is_no_answer_at_the_depth_limit_and_a_dead_end_earn_nothing() -> None:
    def endless(leaves: list[Leaf[int]]) -> list[list[Child[int]]]:
        return [[Child("OST", tree.nodes[place].state + 1)] for tree, place in leaves]

    tree = Tree(0, 1)
    search([tree], endless, RolloutOptions(rollouts=2, depth=3))
    assert [(node.depth, node.visits, node.total) for node in tree.nodes] == [
        (depth, 2, 0.0) for depth in range(4)
    ]
    dead = Tree(0, 1)
    search([dead], lambda leaves: [[] for _ in leaves], RolloutOptions(rollouts=2, depth=3))
    assert [(node.visits, node.total, node.children) for node in dead.nodes] == [(2, 0.0, [])]
    assert list(dead.answers()) == []


def test_an_answer_at_the_depth_limit_earns_its_reward() -> None:
    tree = Tree("root", 1)
    search([tree], lambda leaves: [[Child("DA", "end", 0.75)] for _ in leaves], RolloutOptions(depth=1))
    assert (tree.nodes[1].visits, tree.nodes[1].total) == (4, 3.0)


def test_progress_counts_rollouts() -> None:
    seen: list[tuple[int, int]] = []
    search(
        [Tree[Path]((), 5)],
        Table(5),
        RolloutOptions(rollouts=3),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (3, 3)
    assert all(total == 3 for _, total in seen)


def test_children_of_each_kind_are_those_of_the_page() -> None:
    """Baselines, section 8a; nothing follows a direct answer."""
    assert LEGAL == {
        "U": ("A1", "A2", "A3", "A5"),
        "RU": ("A1", "A2", "A3"),
        "SQ": ("A1", "A2", "A3", "A4"),
        "RS": ("A1", "A2", "A3"),
        "OST": ("A1", "A2"),
        "DA": (),
    }
