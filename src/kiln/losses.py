"""What an upgrade of a node would lose: all that lies outside /data and differs from the node's image.

The node's files are compared with a manifest of its image, made once per image and kept in the store. On the node only
two programs of ``kiln.node_tools`` run, from standard input: nothing is written there unless ``rescue`` is called.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from kiln.losses_baseline import baseline
from kiln.losses_place import Place, connect
from kiln.node_tools import data_manifest
from kiln.store import Store

EXIT_CODE = 3
"""What a command ends with when something would be lost."""

MOST_SINGLE = 20
"""Files of one folder that are told one by one; more are one line."""

STORE_BYTES = 10 << 30
"""From this size on the object store is the better place: the least data volume has 10 GiB."""

_HOME = r"/(?:root|home/[^/]+)"

NOISE: tuple[tuple[str, str], ...] = (
    (r"/var/log/.*", "logs"),
    (r"/var/cache/.*", "caches, made again when wanted"),
    (r"/var/lib/apt/.*|/var/lib/dpkg/.*", "apt's own records: packages are told by name"),
    (r"/var/lib/systemd/.*|/var/lib/private/.*", "state of systemd's services, each node's own"),
    (r"/etc/machine-id|/var/lib/dbus/machine-id", "the identity of the node, new at its first boot"),
    (r"/etc/ssh/ssh_host_.*", "host keys, made at each node's first boot"),
    (r"/etc/(resolv\.conf|hosts|hostname|mtab|\.updated)|/var/\.updated", "written at boot, for the node's network"),
    (r"/etc/(passwd|group|shadow|gshadow|subuid|subgid)-", "the system's copy of a file that is told itself"),
    (r"/etc/\.pwd\.lock", "a lock"),
    (r"/etc/(ld\.so\.cache|alternatives/.*|rc[0-6S]\.d/.*)", "made from the packages, which are told by name"),
    (r"/usr/share/(info/dir|mime/.*|icons/.*/icon-theme\.cache)", "made from the packages, which are told by name"),
    (r"/boot/(initrd|grub/).*", "made from the kernel's packages, which are told by name"),
    (
        r"/var/lib/(cloud|dhcp|chrony|ntp|logrotate|ucf|sudo|NetworkManager|misc)/.*",
        "state of services, each node's own",
    ),
    (r"/opt/qingcloud/.*|/etc/confd/.*", "the platform's agent, which the new image has itself"),
    (
        _HOME + r"/\.qingstor/config\.yaml|/etc/deeplearning/(hosts|gpus)",
        "rendered by confd from the cluster's settings",
    ),
    (_HOME + r"/\.(cache|nv|theano|npm|ccache)/.*", "caches, made again when wanted"),
    (
        _HOME + r"/\.(local/share/jupyter/runtime|ipython/profile_default/(pid|security))/.*",
        "of processes that run now",
    ),
    (_HOME + r"/\.ipython/profile_default/(history\.sqlite.*|db/.*)", "history of commands"),
    (_HOME + r"/\.(bash|python|node_repl|mysql|sqlite|psql)_history|" + _HOME + r"/\.(lesshst|viminfo)", "history"),
    (_HOME + r"/\.(wget-hsts|Xauthority|ICEauthority|sudo_as_admin_successful|rnd)", "marks that programs leave"),
    (_HOME + r"/\.jupyter/migrated|" + _HOME + r"/\.config/matplotlib/.*", "marks that programs leave"),
    (r"(/.*)?/(__pycache__/.*|__pycache__|[^/]+\.py[co])", "compiled from sources that are told themselves"),
    (r"(/.*)?/(\.ipynb_checkpoints/.*|\.nfs[0-9a-f]+|[^/]+\.sw[op])", "copies that editors leave"),
    (r"/\.dockerenv|/lost\+found(/.*)?|/var/lib/docker/.*", "of the container engine and the file system"),
)
"""Paths, as regular expressions of the whole, that differ on every node and hold nothing of a user's; and why."""

_NOISE = tuple((re.compile(pattern), reason) for pattern, reason in NOISE)

CRONTABS = re.compile(r"/var/spool/cron/.*|/etc/cron(tab$|\..*/.*)")
SYSTEM = re.compile(r"/(etc|usr|bin|sbin|lib\w*|boot|var)/.*")

VISIBLE = re.compile(_HOME + r"(/[^./][^/]*)+")
"""Folders that people make: programs make theirs with a dot before the name, or elsewhere."""

Kind = Literal[
    "file", "files", "folder", "environment", "crontab", "distribution", "package", "notebook", "training", "process"
]
Change = Literal["added", "changed", "removed", "running", "broken"]


@dataclass(frozen=True)
class Loss:
    """One thing that is gone after an upgrade."""

    kind: Kind
    change: Change
    name: str
    """A path as people read it, a package with versions, or a command."""
    size: int
    """Bytes; memory in use of a process; 0 for a package."""
    count: int
    """How many files it stands for; 0 where it is no file."""
    advice: str
    """What to do, with a command."""
    paths: tuple[str, ...] = ()
    """Quoted absolute paths that ``rescue`` copies, with all below."""


@dataclass(frozen=True)
class LossReport:
    """What an upgrade of one node would lose."""

    target: str
    image: str
    release: str
    losses: tuple[Loss, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason, as in NOISE, to the number of files that differ and are not told for it."""
    free: int = 0
    """Free bytes on the data volume."""
    mounted: bool = False
    """Whether a volume is mounted at /data."""

    @property
    def size(self) -> int:
        """Bytes of all files that would be lost."""
        return sum(loss.size for loss in self.losses if loss.count)

    def exit_code(self) -> int:
        """3 when something would be lost, else 0."""
        return EXIT_CODE if self.losses else 0

    def as_data(self) -> dict[str, Any]:
        """The report as JSON."""
        return {**asdict(self), "size": self.size}

    def as_text(self) -> str:
        """A block per kind, a line for each loss and one for what to do with it."""
        left_out = ""
        if self.left_out:
            kinds = "; ".join(f"{count:,} {reason}" for reason, count in sorted(self.left_out.items()))
            left_out = f"{sum(self.left_out.values()):,} files differ and are not told: {kinds}"
        if not self.losses:
            found = f"no loss found; {left_out}" if left_out else "nothing outside /data differs; nothing would be lost"
            return f"{self.target}, compared with {self.image}: {found}"
        lines = [f"{self.target}, compared with {self.image}: an upgrade would lose"]
        for loss in self.losses:
            files = f", {loss.count:,} files" if loss.count > 1 else ""
            size = f" ({_size(loss.size)}{files})" if loss.size or files else ""
            lines.append(f"  {loss.kind:<13}{loss.change:<8} {loss.name}{size}")
            lines.append(f"  {'':<22}{loss.advice}")
        volume = f"{_size(self.free)} free on /data" if self.mounted else "no volume is mounted at /data"
        lines.append(f"{len(self.losses)} losses, {_size(self.size)} in files; {volume}")
        lines += [left_out] if left_out else []
        return "\n".join(lines)


def _size(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


# The comparison

Entry = dict[str, Any]


def _differing(image: Path, node: Path) -> Iterator[tuple[str, Entry, Entry]]:
    """(absolute quoted path, the image's entry or an empty one, the node's) where the node's may hold something new.

    A file of the same size and other time may be the same still. Of folders only a new one that holds nothing.
    """
    before, after = data_manifest.Manifest(str(image)), data_manifest.Manifest(str(node))
    folder = ""
    """The new one that was last, as long as nothing is found in it; what it holds comes next, as all of it is new."""
    try:
        for old, new in data_manifest.pairs(before, after):
            if not new:
                continue
            path = "/" + new["path"]
            if folder and not path.startswith(folder + "/"):
                yield folder, {}, {"type": "dir"}
            folder = path if new.get("type") == "dir" and not old and VISIBLE.fullmatch(path) else ""
            if new.get("type") not in ("dir", "socket", None):
                keys = (
                    "type",
                    "size",
                    "mtime_ns" if new["type"] == "file" else "target",
                    "mode",
                    "uid",
                    "gid",
                    "xattrs",
                )
                other = "sha256" in new and old.get("sha256") != new["sha256"]
                if other or any(old.get(key) != new.get(key) for key in keys):
                    yield path, old, new
        if folder:
            yield folder, {}, {"type": "dir"}
    finally:
        before.close()
        after.close()


def _folders(image: Path) -> frozenset[str]:
    """Quoted absolute paths of the image's directories."""
    found = data_manifest.Manifest(str(image))
    try:
        lines = (line for line in found.lines() if b'","type":"dir",' in line)
        return frozenset("/" + found.entry(line)["path"] for line in lines)
    finally:
        found.close()


def find_losses(
    target: str,
    image: str,
    store: Store,
    *,
    workspaces: Sequence[str],
    release: str = "",
    ssh_config: Path | None = None,
    thorough: bool = False,
) -> LossReport:
    """Compares a node with its image; reads only.

    ``target``: a container, ssh://user@host:port, or local. ``image``: reference of the image that the node was made
    from. ``workspaces``: its virtualenvs. ``release``: what the report calls it; default: the image's tag up to its
    first dash. ``thorough``: read every file, and so find what was changed without another size or time; else only
    files with another time are read.
    Raises KilnError when one of them cannot be read.
    """
    manifest, was = baseline(image, store, workspaces)
    node = Place.of(target, connect(target, ssh_config))
    with TemporaryDirectory(prefix="kiln-losses-") as scratch:
        listed = Path(scratch) / "manifest"
        node.manifest(listed, content=thorough)
        candidates = list(_differing(manifest, listed))
    now = node.ask(["facts", *workspaces])
    left_out: Counter[str] = Counter()
    differing = []
    for path, old, new in candidates:
        reason = _noise(path)
        if reason:
            left_out[reason] += 1
        else:
            differing.append((path, old, new))
    distributions, metadata = _distributions(was["distributions"], now["distributions"])
    packages, unpacked = _packages(was["packages"], now["packages"], now["automatic"])
    request = {
        "digests": [path for path, old, new in differing if new["type"] == "file" and old.get("size") == new["size"]],
        "distributions": metadata,
        "packages": unpacked,
    }
    answer = node.ask(["resolve"], request)
    claimed = {path for files in answer["distributions"].values() for path in files}
    claimed |= {path for files in answer["packages"].values() for path in files if not path.startswith("/etc/")}
    lost = [
        (path, old, new)
        for path, old, new in differing
        if not _same(old, new, answer["digests"].get(path)) and not _is_claimed(path, claimed, workspaces)
    ]
    free = now["volume"]["free"]
    folders = _folders(manifest)
    found = [
        *_files(lost, folders, free),
        *_environments(now["environments"], folders),
        *distributions,
        *packages,
        *(_running(process) for process in now["processes"]),
    ]
    name = release or image.rpartition(":")[2].partition("-")[0]
    return LossReport(target, image, name, tuple(found), dict(left_out), free, now["volume"]["mounted"])


def _noise(path: str) -> str:
    return next((reason for pattern, reason in _NOISE if pattern.fullmatch(path)), "")


def _same(old: Entry, new: Entry, digest: str | None) -> bool:
    """Whether a file is the image's although its time is another."""
    keys = ("type", "size", "mode", "uid", "gid", "xattrs")
    same = all(old.get(key) == new.get(key) for key in keys)
    return bool(old) and digest is not None and old.get("sha256") == digest and same


def _is_claimed(path: str, claimed: set[str], workspaces: Iterable[str]) -> bool:
    """Whether a changed package or distribution, which is told by name, put the file there."""
    if path in claimed:
        return True
    # A distribution's folder is told as a whole; elsewhere a folder is many packages' and says nothing.
    inside = any(path.startswith(f"{workspace}/lib/") for workspace in workspaces)
    return inside and any(parent in claimed for parent in _parents(path))


def _parents(path: str) -> Iterator[str]:
    while path.count("/") > 1:
        path = path.rpartition("/")[0]
        yield path


def _files(lost: list[tuple[str, Entry, Entry]], folders: frozenset[str], free: int) -> Iterator[Loss]:
    """A line for each file; one for a whole folder that the image does not have, or for many files of one folder."""
    groups: dict[tuple[str, Change], list[tuple[str, int]]] = {}
    empty = []
    for path, old, new in lost:
        if new["type"] == "dir":
            empty.append(path)
            continue
        top = next((parent for parent in reversed(list(_parents(path))) if parent not in folders), "")
        # By itself, until it is known how many there are in its folder.
        key = top or (path.rpartition("/")[0] + "/")
        change: Change = "changed" if old else "added"
        groups.setdefault((key, change), []).append((path, new.get("size", 0)))
    whole_folders = {key for (key, _), files in groups.items() if not key.endswith("/") and len(files) > 1}
    for path in empty:
        if whole_folders.isdisjoint(_parents(path)):
            shown = data_manifest.shown(path + "/")
            yield Loss("folder", "added", shown, 0, 0, _copy(path, 0, free, "added"), (path,))
    for (key, change), files in groups.items():
        size = sum(size for _, size in files)
        paths = tuple(path for path, _ in files)
        single = key.endswith("/") and len(files) <= MOST_SINGLE
        if single or len(files) == 1:
            for path, one in files:
                crontab = CRONTABS.fullmatch(path) is not None
                shown = data_manifest.shown(path)
                yield Loss(
                    "crontab" if crontab else "file", change, shown, one, 1, _copy(path, one, free, change), (path,)
                )
        else:
            # All of a folder that is new, its empty folders too; of an old one only what is new there.
            whole = paths if key.endswith("/") else (key,)
            shown = data_manifest.shown(key if key.endswith("/") else key + "/")
            yield Loss(
                "files",
                change,
                shown,
                size,
                len(files),
                _copy(key.rstrip("/"), size, free, change, several=True),
                whole,
            )


def _copy(path: str, size: int, free: int, change: Change, *, several: bool = False) -> str:
    name = shlex.quote(data_manifest.shown(path))
    crontab = re.fullmatch(r"/var/spool/cron/crontabs/([a-z_][\w-]*)", path)
    if crontab:
        user = crontab[1]
        return f"crontab -u {user} -l > /data/crontab-{user}; after the upgrade: crontab -u {user} /data/crontab-{user}"
    if size > STORE_BYTES or size > free:
        return f"too large for /data: qsctl {'sync' if several else 'cp'} {name} qs://BUCKET/"
    if change == "changed" and SYSTEM.fullmatch(path):
        return f"note what you changed: the new image has a file of its own there; cp -a --parents {name} /data/"
    return f"cp -a --parents {name} /data/"


def _environments(pythons: dict[str, str], folders: frozenset[str]) -> Iterator[Loss]:
    """Virtualenvs on the volume that will not start, as their Python is neither there nor of the image."""
    for environment, python in sorted(pythons.items()):
        if not python.startswith("/data/") and python not in folders:
            name, needs = data_manifest.shown(environment), data_manifest.shown(python)
            pip = shlex.quote(f"{name}/bin/pip")
            advice = f"{pip} freeze > /data/requirements-{name.rpartition('/')[2]}.txt; after the upgrade make it anew"
            yield Loss("environment", "broken", f"{name} (starts no more without {needs})", 0, 0, advice)


def _distributions(
    was: dict[str, dict[str, list[str]]], now: dict[str, dict[str, list[str]]]
) -> tuple[list[Loss], list[str]]:
    """Losses, and where the metadata of what is new stands."""
    found = []
    metadata = []
    for workspace, installed in now.items():
        before = was.get(workspace, {})
        label = workspace.rpartition("/")[2]
        pip = f"{workspace}/bin/pip"
        keep = f"{pip} freeze > /data/requirements-{label}.txt; after the upgrade: {pip} install"
        for name in sorted({*before, *installed}):
            old, new = before.get(name, ["", "", ""])[0], installed.get(name, ["", "", ""])[0]
            if old == new:
                continue
            if new:
                metadata.append(installed[name][1])
            if not old:
                place = installed[name][2]
                text = f"{name} {new}" + (f" (developed in {place})" if place else "")
                found.append(Loss("distribution", "added", f"{label}: {text}", 0, 0, f"{keep} {name}=={new}"))
            elif not new:
                advice = f"the new image may bring it again; after the upgrade: {pip} uninstall {name}"
                found.append(Loss("distribution", "removed", f"{label}: {name} {old}", 0, 0, advice))
            else:
                text = f"{label}: {name} {old} -> {new}"
                found.append(Loss("distribution", "changed", text, 0, 0, f"{keep} {name}=={new}"))
    return found, metadata


def _packages(was: dict[str, str], now: dict[str, str], automatic: Iterable[str]) -> tuple[list[Loss], list[str]]:
    """Losses, and the packages whose files on the node differ for it.

    One that came only because another needs it is no line of its own.
    """
    others = frozenset(automatic)
    found = []
    unpacked = []
    for name in sorted({*was, *now}):
        old, new = was.get(name), now.get(name)
        if old == new:
            continue
        if new is not None:
            unpacked.append(name)
        if new is None:
            advice = f"the new image may bring it again; after the upgrade: apt-get remove {name}"
            found.append(Loss("package", "removed", f"{name} {old}", 0, 0, advice))
        elif old is not None:
            advice = f"after the upgrade, if the new image's is older: apt-get install {name}={new}"
            found.append(Loss("package", "changed", f"{name} {old} -> {new}", 0, 0, advice))
        elif name not in others:
            advice = f"echo {name} >> /data/packages.txt; after the upgrade: apt-get install {name}"
            found.append(Loss("package", "added", f"{name} {new}", 0, 0, advice))
    return found, unpacked


def _running(process: dict[str, Any]) -> Loss:
    advice = {
        "notebook": "save it to /data and shut it down",
        "training": "let it end, or have it save a checkpoint to /data",
        "tensorboard": "note its --logdir, and keep that in /data",
    }.get(process["kind"], "let it end")
    kinds: dict[str, Kind] = {"notebook": "notebook", "training": "training"}
    folder = f", in {data_manifest.shown(process['cwd'])}" if process["cwd"] else ""
    text = f"{process['command']} (process {process['pid']}{folder})"
    return Loss(kinds.get(process["kind"], "process"), "running", text, process["memory"], 0, advice)


# The rescue


def rescue(target: str, report: LossReport, *, ssh_config: Path | None = None, mounted: bool = True) -> str:
    """Copies the files that would be lost to /data/rescued-from-RELEASE; returns the folder.

    With owners, modes, times, xattrs and ACLs, and a note on the way back. What is there already stays: the folder then
    gets another name, unless it holds all of it. With ``mounted`` a volume must be mounted at /data. Raises KilnError,
    and nothing is copied then, when there is no room.
    """
    node = Place.of(target, connect(target, ssh_config))
    paths = sorted({path for loss in report.losses for path in loss.paths})
    request = {
        "paths": paths,
        "name": f"rescued-from-{report.release}",
        "mounted": mounted,
        "texts": {"RESTORE.md": restore_note(report), "losses.json": json.dumps(report.as_data(), indent=1) + "\n"},
    }
    answer: dict[str, Any] = node.ask(["rescue"], request)
    return str(answer["folder"])


def restore_note(report: LossReport) -> str:
    """What RESTORE.md says; ``{folder}`` is where it will stand."""

    def listed(title: str, kinds: Sequence[Kind], text: Callable[[Loss], str]) -> list[str]:
        chosen = [loss for loss in report.losses if loss.kind in kinds]
        return ["", f"## {title}", "", *(text(loss) for loss in chosen)] if chosen else []

    lines = [
        f"# What lay outside /data on release {report.release}",
        "",
        f"Copied before the upgrade, each file at its own path below this folder. It was compared with {report.image}.",
        "",
        "To put one back, with its owner, mode and times:",
        "",
        "    sudo cp -a {folder}/home/ubuntu/NAME /home/ubuntu/NAME",
        "",
        "Look before you put back what stands below /etc, /usr or /var: the new release has files of its own there.",
        "Remove this folder when you have all that you need.",
    ]
    lines += listed("Files", ("file", "files", "folder", "crontab"), lambda loss: f"- {loss.change}: `{loss.name}`")
    lines += listed("Virtualenvs", ("environment",), lambda loss: f"- {loss.name}; {loss.advice}")
    lines += listed("Distributions", ("distribution",), lambda loss: f"- {loss.change}: {loss.name}; {loss.advice}")
    lines += listed("Packages", ("package",), lambda loss: f"- {loss.change}: {loss.name}; {loss.advice}")
    lines += listed("What ran, and is not copied", ("notebook", "training", "process"), lambda loss: f"- `{loss.name}`")
    return "\n".join(lines) + "\n"
