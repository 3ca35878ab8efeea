"""Commit once, publish idempotently, believe nothing unread: the shared folder through which parties speak.

A stage writes into a staging folder, manifest last, and renames the folder to its final name: the rename is
the only commit point and the first one wins. Publishing copies what is addressed to others into
``exchange/<sender>/<recipient or all>/<stage>/`` in the same way, and any attempt may finish it.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lada.errors import ExchangeError
from lada.faults import crash_point
from lada.manifest import FILE_NAME, MANIFEST, FileEntry, Manifest, Outbox, Payload, read_manifest
from lada.rundir import (
    PARTY_NAME,
    STAGE_NAME,
    RunDir,
    Stage,
    dump_json,
    parse_stage,
    sha256,
    sync_dir,
    write_synced,
)

ALL = "all"
"""The recipient of a message to everybody."""


def exchange_root(run: RunDir) -> Path:
    """The folder that holds every message of a run."""
    return run.root / "exchange"


def message_dir(run: RunDir, sender: str, recipient: str, stage: str) -> Path:
    """Folder of one published message."""
    return outbox_dir(run, sender) / recipient / stage


def outbox_dir(run: RunDir, sender: str) -> Path:
    """Folder of all that a party publishes; nobody else writes in it."""
    return exchange_root(run) / sender


def inbox_dirs(run: RunDir, recipient: str, senders: Iterable[str]) -> list[Path]:
    """Folders of all that the named parties address to a recipient, or to all."""
    return [outbox_dir(run, sender) / address for sender in senders for address in (recipient, ALL)]


def make_exchange_dirs(run: RunDir, parties: Sequence[str]) -> list[str]:
    """Make the folder of each sender and recipient, so that a container can be shown those that it may see.

    A party may write in its own folder: a link or anything else in the place of a folder is moved to its
    ``.rejected/``, since whoever mounts it would see what it points to.

    Returns:
        One remark for each thing that was moved.
    """
    remarks = put_links_away(run, parties)
    for sender in parties:
        for recipient in (*parties, ALL):
            (outbox_dir(run, sender) / recipient).mkdir(parents=True, exist_ok=True)
    return remarks


def put_links_away(run: RunDir, parties: Sequence[str]) -> list[str]:
    """Move what stands in the place of an exchange folder and is none: nobody may be led elsewhere by it.

    Returns:
        One remark for each thing that was moved.
    """
    remarks = []
    for sender in parties:
        for folder in (outbox_dir(run, sender), *(outbox_dir(run, sender) / one for one in (*parties, ALL))):
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                remarks.append(f"{folder} is no folder: moved to {_put_away(run, sender, folder)}")
    return remarks


def _put_away(run: RunDir, party: str, path: Path) -> Path:
    """Move what a party must not have made to its .rejected/, under a name that it did not choose."""
    rejected = _quarantine(run, party)
    target = rejected / f"exchange.{secrets.token_hex(4)}"
    path.rename(target)
    return target


def _quarantine(run: RunDir, party: str) -> Path:
    """A party's .rejected/, a folder and no link to one."""
    rejected = run.rejected(party)
    if rejected.is_symlink():
        rejected.unlink()
    rejected.mkdir(parents=True, exist_ok=True)
    return rejected


def commit(
    run: RunDir, stage: Stage, outbox: Outbox, *, attempt: str, run_id: str, inputs: Mapping[str, str]
) -> bool:
    """Write an outbox and make it the stage's commit.

    Returns:
        True when this attempt's work is the commit; False when another attempt had committed before, in
        which case this attempt's work is thrown away.

    Raises:
        ExchangeError: check ``once`` when this very attempt has committed already, ``name`` for a file
            or recipient name outside the grammar.
    """
    for recipient in outbox.public:
        if recipient != ALL and not PARTY_NAME.match(recipient):
            detail = f"there is no recipient '{recipient}'"
            raise ExchangeError("name", detail, party=stage.party, stage=stage.name)
    final = run.commit(stage)
    if run.is_committed(stage):
        return _lost(run, stage, attempt)
    staging = run.staging(stage, attempt)
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    head = Manifest(
        run_id=run_id,
        run_hash=sha256(run.run_yaml.read_bytes()),
        party=stage.party,
        stage=stage.name,
        attempt=attempt,
        files=(),
    )
    entries = [_write(staging, stage, name, payload) for name, payload in sorted(outbox.private.items())]
    for recipient, files in sorted(outbox.public.items()):
        folder = staging / "public" / recipient
        folder.mkdir(parents=True)
        sent = [_write(folder, stage, name, payload) for name, payload in sorted(files.items())]
        _write_manifest(folder, head.model_copy(update={"recipient": recipient, "files": tuple(sent)}))
        entries += [entry.model_copy(update={"path": f"public/{recipient}/{entry.path}"}) for entry in sent]
    crash_point("commit.files-written")
    whole = head.model_copy(update={"inputs": dict(inputs), "files": tuple(entries)})
    _write_manifest(staging, whole)
    crash_point("commit.manifest-written")
    try:
        staging.rename(final)
    except OSError:
        if not run.is_committed(stage):
            raise
        shutil.rmtree(staging)
        return _lost(run, stage, attempt)
    sync_dir(final.parent)
    crash_point("commit.renamed")
    return True


def _lost(run: RunDir, stage: Stage, attempt: str) -> bool:
    manifest = read_manifest(run.commit(stage), stage.party, stage.name)
    if manifest.attempt == attempt:
        raise ExchangeError(
            "once", f"attempt {attempt} commits twice", party=stage.party, stage=stage.name, file=MANIFEST
        )
    return False


def _write(folder: Path, stage: Stage, name: str, payload: Payload) -> FileEntry:
    if not FILE_NAME.match(name.removeprefix("state/")):
        raise ExchangeError("name", f"'{name}' is not legal", party=stage.party, stage=stage.name, file=name)
    (folder / name).parent.mkdir(exist_ok=True)
    write_synced(folder / name, payload.data)
    digest = sha256(payload.data)
    return FileEntry(
        path=name, bytes=len(payload.data), sha256=digest, kind=payload.kind, items=payload.items
    )


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_synced(folder / MANIFEST, dump_json(manifest.model_dump(mode="json")).encode())
    sync_dir(folder)


def publish(run: RunDir, stage: Stage) -> None:
    """Copy what a commit addresses to others into the exchange; safe to repeat, safe to be killed.

    Raises:
        ExchangeError: check ``once`` when something else stands in the exchange under this stage's name.
    """
    public = run.commit(stage) / "public"
    recipients = sorted(path.name for path in public.iterdir()) if public.is_dir() else []
    for recipient in recipients:
        source = public / recipient
        target = message_dir(run, stage.party, recipient, stage.name)
        if target.exists():
            if (target / MANIFEST).read_bytes() != (source / MANIFEST).read_bytes():
                raise ExchangeError(
                    "once",
                    "the exchange holds another message of this name",
                    party=stage.party,
                    stage=stage.name,
                    file=f"{recipient}/{MANIFEST}",
                )
            continue
        # Not the process's number: in containers of their own two attempts have the same one.
        temporary = target.with_name(f".{stage.name}.{secrets.token_hex(4)}.tmp")
        _copy(source, temporary)
        crash_point("publish.copied")
        try:
            temporary.rename(target)
        except OSError:
            if not (target / MANIFEST).is_file():
                raise
            shutil.rmtree(temporary)
        sync_dir(target.parent)
        crash_point("publish.renamed")


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a folder, or leave nothing.

    Not `shutil.copytree`: it gathers what goes wrong in an error that does not tell a full disk from a fault.
    """
    target.mkdir(parents=True)
    try:
        for path in sorted(source.iterdir()):
            if path.is_file():  # no folder in it has a file that its manifest lists
                shutil.copy2(path, target / path.name)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)  # it may be what fills the disk
        raise


def reject(run: RunDir, stage: Stage, error: ExchangeError) -> Path:
    """Move a refused commit to the party's .rejected/, with the reason; withdraw what it published."""
    rejected = _quarantine(run, stage.party)
    # A folder of our own: nothing in the commit may decide where the reason is written, and nothing that
    # was removed or put there since may stand in its way.
    target = rejected / f"{stage.name}.{secrets.token_hex(4)}"
    target.mkdir()
    (target / "reason.txt").write_text(f"{error}\n", encoding="utf-8")
    run.commit(stage).rename(target / "commit")
    withdraw(run, stage)
    return target


def withdraw(run: RunDir, stage: Stage) -> None:
    """Remove a stage's messages from the exchange; publishing the commit again restores them."""
    for folder in sorted((exchange_root(run) / stage.party).glob(f"*/{stage.name}")):
        if folder.parent.is_symlink():
            continue  # put there by the party: what it points to is not its
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            folder.unlink()


def is_published_whole(run: RunDir, stage: Stage) -> bool:
    """Whether the exchange holds exactly what the commit addressed to others, byte for byte."""
    public = run.commit(stage) / "public"
    for path in sorted(public.rglob("*")):
        if path.is_dir():
            continue
        recipient, name = path.relative_to(public).parts
        folder = message_dir(run, stage.party, recipient, stage.name)
        copy = folder / name
        if folder.is_symlink() or copy.is_symlink() or not copy.is_file():
            return False
        if copy.read_bytes() != path.read_bytes():
            return False
    sent = list((exchange_root(run) / stage.party).glob(f"*/{stage.name}"))
    if not all(folder.is_dir() for folder in sent):
        return False
    return sum(1 for folder in sent for _ in folder.iterdir()) == sum(
        1 for path in public.rglob("*") if path.is_file()
    )


def inbox_messages(
    run: RunDir, recipient: str, senders: Iterable[str], stages: Iterable[str]
) -> list[tuple[str, str, str]]:
    """(sender, recipient or ``all``, stage) of what was published to a party in the given earlier stages."""
    wanted = list(stages)
    return [
        (sender, address, stage)
        for stage in wanted
        for sender in senders
        for address in (recipient, ALL)
        if (message_dir(run, sender, address, stage) / MANIFEST).is_file()
    ]


def committed_stages(run: RunDir, party: str) -> list[Stage]:
    """Stages that a party has committed, in order of their names."""
    folder = run.party(party)
    if not folder.is_dir():
        return []
    names = sorted(path.parent.name for path in folder.glob(f"r*/{MANIFEST}"))
    return [parse_stage(name, party) for name in names if STAGE_NAME.match(name)]


def sweep(run: RunDir, party: str) -> None:
    """Remove what attempts of committed stages left: staging folders, resume points, half-copied messages.

    What the first stage was given to reuse goes too. Folders of stages without a commit stay: an attempt may
    be at work in them.
    """
    for stage in committed_stages(run, party):
        leftovers = [
            *(run.party(party) / ".staging").glob(f"{stage.name}.*"),
            run.resume(stage),
            run.reuse(party),
            *(exchange_root(run) / party).glob(f"*/.{stage.name}.*.tmp"),
        ]
        for leftover in leftovers:
            # A party may put a link in the place of a folder of its own; what it points to is not its.
            if not leftover.parent.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
