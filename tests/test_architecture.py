"""The rules of the code, read from its syntax trees: who may import whom, and what only one file may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import lada.methods

ROOT = Path(__file__).parents[1]
MEMBERS = {
    0: "errors faults config layers records answers prompts rundir payloads manifest exchange incoming plan "
    "ledger lease driver diagnostics results inbox provenance policy space synthetic replay reuse "
    "communication architecture model_facts staged tabular",
    1: "data",
    2: "asking sentencepiece weights master_weights ranks zero models language_model loading numerics "
    "optimiser resume generation decoding row_cache evaluation losses forward training training_state "
    "token_alignment vocabulary voting soft_targets knowledge labels selection socratic embedding writing "
    "lab tree_search tree_texts tree_actions consistency rehearsal gpus",
    3: "party method methods local prepared pairs distillation answering imitation shared_texts boosting "
    "runs plugin plugin_options allocations",
    4: "stage torchrun progress matrix report convergence toy_pool __main__",
}
"""Ring -> modules and packages of lada; what is inside a package has its ring (architecture, section 2)."""
RINGS = {f"lada.{name}": ring for ring, names in MEMBERS.items() for name in names.split()} | {"lada": 0}
RING_0 = MEMBERS[0].split()
TORCH = {"torch", "transformers", "peft", "deepspeed", "accelerate", "tokenizers", "trl"}
HOST_ONLY = {"pandas", "matplotlib", "scipy", "rich", "sklearn", "submitit"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for top in ("lada", "jobs") for path in sorted((ROOT / top).rglob("*.py"))}
LADA = [name for name in MODULES if name.split(".")[0] == "lada"]
JOBS = [name for name in MODULES if name.split(".")[0] == "jobs"]


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@cache
def imports(name: str) -> frozenset[str]:
    """Everything that a module imports, inside functions too, by full name."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            assert node.module is not None
            # `from lada import provenance` names a module, `from lada.layers import layers` does not.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {one if one in MODULES else node.module for one in names}
    return frozenset(found)


def ring(name: str) -> int:
    while name not in RINGS:
        name, _, last = name.rpartition(".")
        assert name not in ("", "lada"), (
            f"'{last}' has no ring yet: put it into MEMBERS of {Path(__file__).name}"
        )
    return RINGS[name]


def inside(name: str, packages: set[str]) -> bool:
    return name.split(".")[0] in packages


def test_there_is_something_to_check() -> None:
    assert len(LADA) > 40
    assert "lada.language_model" in imports("lada.generation")
    assert "peft" in imports("lada.models"), "an import inside a function is seen"


@pytest.mark.parametrize("name", LADA)
def test_imports_point_downward(name: str) -> None:
    own = [one for one in imports(name) if inside(one, {"lada"})]
    upward = [f"{one} (ring {ring(one)})" for one in own if ring(one) > ring(name)]
    assert upward == [], f"{name} is in ring {ring(name)}"


@pytest.mark.parametrize("name", [f"lada.{name}" for name in RING_0])
def test_ring_0_imports_no_torch_and_no_tables(name: str) -> None:
    assert [one for one in imports(name) if inside(one, TORCH | HOST_ONLY)] == []
    assert [one for one in imports(name) if one.startswith("lada.report")] == []


@pytest.mark.parametrize("name", [name for name in LADA if name.startswith("lada.data")])
def test_data_needs_no_torch(name: str) -> None:
    assert [one for one in imports(name) if inside(one, TORCH)] == []


def importers(packages: set[str]) -> set[str]:
    return {name for name in MODULES if any(inside(one, packages) for one in imports(name))}


def test_only_models_imports_the_model_libraries() -> None:
    assert importers({"transformers", "peft"}) == {"lada.models"}


def test_only_zero_imports_deepspeed_and_only_ranks_talk_to_each_other() -> None:
    assert importers({"deepspeed"}) == {"lada.zero"}
    talk = {name for name in MODULES if "torch.distributed" in imports(name)}
    assert talk == {"lada.ranks"}, "lada.torchrun starts them, and talks to none"


def test_only_jobs_imports_submitit_and_nothing_imports_jobs() -> None:
    assert [name for name in LADA if any(inside(one, {"submitit", "jobs"}) for one in imports(name))] == []
    assert any(inside(one, {"submitit"}) for name in JOBS for one in imports(name))


@pytest.mark.parametrize("name", JOBS)
def test_jobs_see_ring_0_and_no_torch(name: str) -> None:
    assert [one for one in imports(name) if inside(one, TORCH)] == []
    assert [one for one in imports(name) if inside(one, {"lada"}) and ring(one) > 0] == []


def test_methods_never_import_each_other() -> None:
    methods = [name for name in LADA if name.startswith("lada.methods.")]
    assert len(methods) >= 3
    for name in methods:
        assert [one for one in imports(name) if one.startswith("lada.methods")] == [], name


def test_no_other_module_names_a_method() -> None:
    """A method is found by its name; nothing but its own file may know it."""
    others = [name for name in MODULES if not name.startswith("lada.methods.")]
    for name in others:
        assert [one for one in imports(name) if one.startswith("lada.methods.")] == [], name


def test_a_method_has_its_two_names_and_says_what_it_is() -> None:
    for name in [name for name in LADA if name.startswith("lada.methods.")]:
        body = tree(name).body
        classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
        targets = {
            target.id
            for node in body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        assert "Config" in classes | targets, name
        assert "STEPS" in targets, name
        assert ast.get_docstring(tree(name)), name
    assert lada.methods.__doc__


# -- only exchange.py builds exchange paths


def _parts(node: ast.AST) -> Iterator[str]:
    """Strings that stand in a path expression: `a / "b"`, Path("b"), x.joinpath("b"), glob("b"), f"{a}/b"."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        yield from (side.value for side in (node.left, node.right) if _is_text(side))
    elif isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in {
            "Path",
            "PurePath",
            "PosixPath",
            "RunDir",
            "joinpath",
            "glob",
            "rglob",
            "join",
            "with_name",
        }:
            yield from (argument.value for argument in node.args if _is_text(argument))
    elif isinstance(node, ast.JoinedStr):
        texts = [part.value for part in node.values if _is_text(part)]
        yield from (text for text in texts if "/" in text)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def exchange_paths(found: ast.AST) -> list[str]:
    parts = [part for node in ast.walk(found) for part in _parts(node)]
    return [part for part in parts if "exchange" in part.split("/")]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "lada.exchange"])
def test_only_exchange_builds_exchange_paths(name: str) -> None:
    assert exchange_paths(tree(name)) == []


@pytest.mark.parametrize(
    "code",
    [
        'root / "exchange" / party',
        'Path("runs/x/exchange")',
        'root.joinpath("exchange", "a")',
        'f"{root}/exchange/{a}"',
        'root.glob("exchange/*/all")',
    ],
)
def test_the_search_for_exchange_paths_finds_them(code: str) -> None:
    assert exchange_paths(ast.parse(code)) != []


def test_exchange_itself_builds_them() -> None:
    assert exchange_paths(tree("lada.exchange")) == ["exchange"]


# -- ring 0 where torch is not

BLOCKED = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is blocked")
        return None

sys.meta_path.insert(0, Blocker())
for name in sys.argv[1:]:
    importlib.import_module(name)
print("fine")
"""


def import_without(blocked: set[str], names: list[str]) -> subprocess.CompletedProcess[str]:
    code = BLOCKED.format(blocked=sorted(blocked))
    command = [sys.executable, "-c", code, *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_ring_0_jobs_and_data_can_be_imported_where_torch_is_not() -> None:
    names = [f"lada.{name}" for name in RING_0]
    done = import_without(TORCH | HOST_ONLY, names)
    assert done.stdout == "fine\n", done.stderr
    done = import_without(TORCH | HOST_ONLY - {"submitit", "rich"}, JOBS)
    assert done.stdout == "fine\n", done.stderr
    data = [name for name in LADA if name.startswith("lada.data")]
    done = import_without(TORCH, data)
    assert done.stdout == "fine\n", done.stderr


def test_the_block_works() -> None:
    done = import_without(TORCH, ["lada.models"])
    assert done.returncode == 1
    assert "is blocked" in done.stderr


# -- what no file may do


@pytest.mark.parametrize("name", list(MODULES))
def test_no_pickle_no_broad_except_no_shell(name: str) -> None:
    assert not {"pickle", "cloudpickle", "dill", "shelve", "marshal"} & {
        one.split(".")[0] for one in imports(name)
    }
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type is not None else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"{name}:{node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "shell":
            assert ast.unparse(node.value) == "False", f"{name}:{node.value.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "torch.load",
            "os.system",
            "eval",
            "exec",
        ):
            pytest.fail(f"{name}:{node.lineno} calls {ast.unparse(node.func)}")
