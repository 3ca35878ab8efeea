"""make image: when it builds, what it refuses, what a digest is worth; for real in tests/cluster."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import jobs.image as image_module
from jobs import wheels
from jobs.cluster import ROOT, Cluster, SizedResources
from jobs.image import image_digest, main, make_image, read_definition
from lada.errors import ConfigError

MANYLINUX = f"manylinux_2_28_{platform.machine()}"
FAKE = """#!/bin/bash
case $1 in
  build)
    echo "$@" >> {calls}
    echo "INFO:    Starting build..."
    [ ! -e {calls}.broken ] || {{ echo "FATAL:   no space left on device"; exit 255; }}
    echo "${{@: -2:1}}" > "${{@: -2:1}}" ;;
  --version) echo "apptainer version 0" ;;
  *) [ ! -e {calls}.cannot-enter ] || {{ echo "cannot mount" >&2; exit 255; }} ;;
esac
"""


class Site:
    """A cluster with a definition, a base and an Apptainer that only pretends."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.calls, self.said = root, root / "calls", list[str]()
        self.containers = root / "containers"
        shutil.copytree(ROOT / "containers", self.containers)
        patch.setattr(image_module, "CONTAINERS", self.containers)
        program = root / "apptainer"
        program.write_text(FAKE.format(calls=self.calls))
        program.chmod(0o755)
        (root / "base.sif").write_text("base")
        (root / "wheels").mkdir()
        patch.setattr(wheels, "fill", lambda *args, **kwargs: root / "wheels")
        self.image = root / "images" / "x.sif"
        self.cluster = Cluster.model_validate(
            {
                "name": "x",
                "definition": str(self.containers / "lada-cpu.def"),
                "image": str(self.image),
                "base_image": str(root / "base.sif"),
                "apptainer": [str(program)],
                "resources": [SizedResources(up_to=80)],
            }
        )

    def make(self, **changes: object) -> bool:
        self.said.clear()
        return make_image(self.cluster.model_copy(update=changes), report=self.said.append)

    def record(self) -> dict[str, object]:
        found = json.loads((self.root / "images" / "x.sif.json").read_text())
        assert isinstance(found, dict)
        return found


def has_free(patch: pytest.MonkeyPatch, count: int) -> None:
    """All disks have this many bytes free."""
    usage = shutil.disk_usage("/")
    patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=count))


@pytest.fixture()
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    has_free(monkeypatch, 10**14)
    return Site(tmp_path, monkeypatch)


def test_it_builds_once_and_says_what_it_did(site: Site) -> None:
    assert site.make() is True
    assert "Starting build..." in "\n".join(site.said)
    assert (site.root / "images" / "x.sif.log").read_text().startswith("INFO:    Starting build")
    digest = hashlib.sha256(site.image.read_bytes()).hexdigest()
    assert site.said[-1].endswith(f"sha256 {digest[:12]}")
    record = site.record()
    assert (record["digest"], record["size"]) == (digest, site.image.stat().st_size)
    assert record["mtime_ns"] == site.image.stat().st_mtime_ns
    assert record["apptainer"] == "apptainer version 0"
    assert site.make() is False
    assert site.said == [f"{site.image} is up to date (sha256 {digest[:12]})"]
    assert len(site.calls.read_text().splitlines()) == 1


def test_what_apptainer_is_asked(site: Site) -> None:
    site.make()
    call = site.calls.read_text().split()
    assert f"{site.root}/wheels:/mnt:ro" in call
    assert f"BASE={site.root}/base.sif" in call
    assert call[-1] == str(site.containers / "lada-cpu.def")
    assert call[-2].startswith(f"{site.root}/images/.x.sif."), "not under its own name before it is whole"
    assert sorted(path.name for path in site.image.parent.iterdir()) == ["x.sif", "x.sif.json", "x.sif.log"]


@pytest.mark.parametrize(
    "change",
    [
        lambda site: (site.containers / "post.sh").write_text("echo"),
        lambda site: (site.containers / "requirements.lock").write_text("torch==1.0\n"),
        lambda site: (site.containers / "lada-cpu.def").write_text("PYTHON=3.11\nTORCH=cpu\n"),
        lambda site: (site.root / "base.sif").write_text("another base"),
        lambda site: site.image.write_text("not what was built"),
        lambda site: site.image.unlink(),
        lambda site: (site.root / "images" / "x.sif.json").write_text("{broken"),
    ],
    ids=["post.sh", "lock", "definition", "base", "image replaced", "image gone", "record broken"],
)
def test_it_builds_again_when_something_changed(site: Site, change: Callable[[Site], object]) -> None:
    site.make()
    change(site)
    assert site.make() is True
    assert site.make() is False


def test_another_index_for_torch_is_another_image(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.make()
    monkeypatch.setenv("TORCH_INDEX", "https://example.org")
    assert site.make() is True


@pytest.mark.parametrize(
    ("fault", "said"), [("broken", "no space left on device"), ("cannot-enter", "cannot mount")]
)
def test_a_failed_build_leaves_the_old_image_and_gives_the_reason(site: Site, fault: str, said: str) -> None:
    site.make()
    before = site.image.read_bytes(), site.record()
    (site.containers / "post.sh").write_text("echo")
    site.calls.with_name(f"calls.{fault}").touch()
    with pytest.raises(ConfigError, match=rf"(?s){said}.*{site.image}\.log"):
        site.make()
    assert (site.image.read_bytes(), site.record()) == before
    assert not list(site.image.parent.glob("*.tmp"))
    site.calls.with_name(f"calls.{fault}").unlink()
    assert site.make() is True


def test_what_is_missing_is_named_with_the_mend(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no `no-such-program` on the PATH: load its module"):
        site.make(apptainer=("no-such-program",))
    with pytest.raises(ConfigError, match=r"no base image .*nowhere.sif: `make cluster-up`"):
        site.make(base_image="/nowhere.sif")
    with pytest.raises(ConfigError, match="needs a base_image"):
        site.make(base_image=None)
    with pytest.raises(ConfigError, match="there is no definition file"):
        site.make(definition="containers/nowhere.def")
    with pytest.raises(ConfigError, match="cannot make the folder of `image`"):
        site.make(image=str(site.root / "base.sif" / "x.sif"))
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(ConfigError, match=r"may not write in .*images"):
        site.make()


def test_too_little_space_is_noticed_before_the_build(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.root / "wheels" / "a.whl").write_bytes(b"x" * 1000)
    has_free(monkeypatch, 5000)
    with pytest.raises(ConfigError, match=r"0.0 GB free, the build needs about .* GB: .*APPTAINER_TMPDIR"):
        site.make()
    assert not site.calls.exists()


def test_a_definition_states_its_python_and_torch(site: Site) -> None:
    found = read_definition(site.cluster)
    assert (found.python, found.torch) == ("3.11", "cpu")
    path = site.containers / "lada-cpu.def"
    path.write_text(path.read_text().replace("TORCH=cpu", "TORCH=tpu"))
    with pytest.raises(ConfigError, match="TORCH=cpu or TORCH=cuda"):
        read_definition(site.cluster)


@pytest.mark.parametrize("name", ["lada.def", "lada-cpu.def"])
def test_both_definitions_share_their_steps(name: str) -> None:
    text = (ROOT / "containers" / name).read_text()
    post = text.partition("%post\n")[2].partition("%environment")[0].split()
    assert post == ["bash", "/opt/post.sh", "{{", "PYTHON", "}}", "{{", "TORCH", "}}"]
    cluster = {
        "name": "x",
        "definition": f"containers/{name}",
        "base_image": __file__,
        "resources": [{"up_to": 8}],
    }
    found = read_definition(Cluster.model_validate(cluster))
    assert (found.base is None) == (found.torch == "cuda")


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cluster", "nowhere"]) == 2
    assert "ConfigError: " in capsys.readouterr().err


# -- digests


def test_a_digest_is_remembered_while_size_and_time_agree(tmp_path: Path) -> None:
    image, record = tmp_path / "x.sif", tmp_path / "x.sif.json"
    image.write_bytes(b"one")
    first = image_digest(image)
    assert first == hashlib.sha256(b"one").hexdigest()
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "digest": "remembered"}))
    assert image_digest(image) == "remembered"
    image.write_bytes(b"two")
    os.utime(image, ns=(content["mtime_ns"] + 1, content["mtime_ns"] + 1))
    assert image_digest(image) == hashlib.sha256(b"two").hexdigest(), "the same size, another time"
    assert image_digest(image) == json.loads(record.read_text())["digest"]


def test_a_copied_image_with_a_new_time_stays_known_as_built(site: Site) -> None:
    site.make()
    os.utime(site.image)
    assert image_digest(site.image) == site.record()["digest"]
    assert site.make() is False


def test_a_digest_needs_no_writable_folder(tmp_path: Path) -> None:
    image = tmp_path / "x.sif"
    image.write_bytes(b"one")
    (tmp_path / "x.sif.json").mkdir()  # where even root cannot write a file
    assert image_digest(image) == hashlib.sha256(b"one").hexdigest()


def test_a_digest_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no image .*x.sif: make image"):
        image_digest(tmp_path / "x.sif")


# -- wheels, with the real pip and an index of hand-made ones


def wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any") -> None:
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as file:
        info = f"{name}-{version}.dist-info"
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture()
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "TORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    settings = {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wheels, "SOURCE_ONLY", ("pure",))
    for name in ("pip", "pure", "other"):
        wheel(folder, name, "1.0")
    wheel(folder, "torch", "2.0+cpu", f"cp311-cp311-{MANYLINUX}")
    wheel(folder, "torch", "2.0+cpu", f"cp312-cp312-{MANYLINUX}")
    return folder


def fetch(index: Path, torch: str = "cpu", python: str = "3.11") -> set[str]:
    lock = index.parent / "lock"
    lock.write_text("other==1.0\npure==1.0\ntorch==2.0\n")
    folder = wheels.fill(lock, index.parent / "houses", python=python, torch=torch, report=lambda line: None)
    return {path.name.split("-")[0] + "-" + path.name.split("-")[2] for path in folder.iterdir()}


def test_wheels_fit_the_images_python_not_this_one(index: Path) -> None:
    assert fetch(index) == {"other-py3", "pip-py3", "pure-py3", "torch-cp311"}
    assert fetch(index, python="3.12") == {"other-py3", "pip-py3", "pure-py3", "torch-cp312"}


def test_wheels_are_fetched_once(index: Path) -> None:
    first = fetch(index)
    shutil.rmtree(index)
    assert fetch(index) == first


def test_a_cpu_build_is_not_taken_for_cuda(index: Path) -> None:
    with pytest.raises(ConfigError, match=r"torch-2.0\+cpu-.*a CPU build.* TORCH_INDEX"):
        fetch(index, torch="cuda")
    (index / f"torch-2.0+cpu-cp311-cp311-{MANYLINUX}.whl").unlink()
    wheel(index, "torch", "2.0", f"cp311-cp311-{MANYLINUX}")
    assert "torch-cp311" in fetch(index, torch="cuda")


def test_a_package_that_is_nowhere_is_named_and_nothing_half_fetched_is_left(index: Path) -> None:
    (index / "other-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ConfigError, match=r"(?s)pip download.*other==1.0"):
        fetch(index)
    assert list((index.parent / "houses").iterdir()) == []
