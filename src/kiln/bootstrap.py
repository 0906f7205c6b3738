"""The bootstrap stage: the apt index that a machine locks at its first bake, and the root file system made from it.

Mirrors, proxies and certificates are the host's own: nothing here names one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from kiln.errors import KilnError
from kiln.store import Store

KEYRINGS = {"debian": Path("/usr/share/keyrings/debian-archive-keyring.gpg")}
"""Distribution to the keyring that signs its archive; at the same place on a host and in an image."""

HOST_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# The host's settings that a container needs to reach the same mirrors.
_CARRIED = re.compile(r"Acquire::(https?(::|$)|Check-|ForceIPv|Retries)")
_NOT_CARRIED = re.compile(r"Acquire::https?::(Proxy-Auto-Detect|ProxyAutoDetect|CaInfo|CaPath)", re.IGNORECASE)
_SETTING = re.compile(r'(\S+) "(.*)";$')


@dataclass(frozen=True)
class Base:
    """What a channel's images stand on."""

    kind: str
    """``mmdebstrap`` or ``tarball``."""
    distribution: str
    suite: str
    suites: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """Suite to URL, where the channel names one; other suites come from the host's mirrors."""

    @classmethod
    def of(cls, variables: Mapping[str, Any]) -> Base:
        """The base that a bootstrap stage's variables describe."""
        try:
            base = msgspec.convert(dict(variables), cls)
        except msgspec.ValidationError as error:
            raise KilnError(
                f"the variables of the bootstrap stage are no base ({error})",
                where="images/stages.yml",
                fix="give it the values of the channel's base",
            ) from None
        return replace(base, suites=base.suites or (base.suite,), components=base.components or ("main",))

    @property
    def archive(self) -> str:
        """What of an archive its index covers, as JSON."""
        return json.dumps([self.suites, self.components, dict(self.mirrors)], sort_keys=True)

    @property
    def keyring(self) -> Path | None:
        """The keyring of its archive, where one is known by path."""
        return KEYRINGS.get(self.distribution.partition("-")[0])


INDEX_INPUT = "apt index"
"""Name of the index among a bootstrap stage's inputs."""


def lock_name(base: Base) -> str:
    """Name of the machine lock that holds the apt index of ``base``: other suites or components are another index."""
    return f"apt-index-{base.suite}-{hashlib.sha256(base.archive.encode()).hexdigest()[:12]}"


def index_folder(store: Store, digest: str) -> Path:
    """Where a locked index stands: ``lists/`` and ``sources.list``."""
    return store.root / "apt" / digest


def lock_index(store: Store, base: Base, *, tarball: Path | None = None) -> str:
    """The digest of the machine's apt index for ``base``; fetched and locked the first time.

    ``tarball`` is a tarball base's archive: it holds the keys of its distribution.
    Raises KilnError when the host names no mirror for a suite, or a mirror does not answer.
    """
    locked = store.machine_lock(lock_name(base))
    if locked and (index_folder(store, locked) / "lists").is_dir():
        return locked
    return refresh_index(store, base, tarball=tarball)


def refresh_index(store: Store, base: Base, *, tarball: Path | None = None) -> str:
    """Fetches the index anew and locks it; returns its digest."""
    work = store.root / "apt" / f".new-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "state").mkdir()
    try:
        keyring = _tarball_keys(tarball, work) if tarball else base.keyring
        if keyring is None or not keyring.is_file():
            raise KilnError(
                f"the archive keys of {base.distribution} are missing",
                where=str(keyring or base.distribution),
                fix="install its archive keyring package",
            )
        sources = sources_list(base, host_mirrors(), keyring)
        (work / "sources.list").write_text(sources, encoding="utf-8")
        settings = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::sourcelist": str(work / "sources.list"),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State": str(work / "state"),
            "Dir::State::lists": str(work / "lists"),
            "Dir::State::status": "/dev/null",
            "Dir::Cache": str(work / "state"),
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        config = work / "apt.conf"
        config.write_text(_conf([*carried_settings(), *settings.items()]), encoding="utf-8")
        done = subprocess.run(
            ["apt-get", "update", "--error-on=any", "-q"],
            env={**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise KilnError(
                f"apt cannot fetch the index of {base.suite} ({_first_error(done.stderr)})",
                where=", ".join(dict.fromkeys(re.findall(r"https?://\S+", sources))),
                fix="check the network and the machine's apt configuration, then run it again",
            )
        (work / "sources.list").write_text(sources_list(base, host_mirrors(), base.keyring), encoding="utf-8")
        shutil.rmtree(work / "state")
        config.unlink()
        (work / "lists" / "lock").unlink(missing_ok=True)
        digest = _index_digest(work / "lists", base)
        final = index_folder(store, digest)
        if not final.exists():
            work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    store.set_machine_lock(lock_name(base), digest)
    return digest


def _index_digest(lists: Path, base: Base) -> str:
    """sha256 over the signed release files, which name every package list by checksum, and which lists were taken."""
    total = hashlib.sha256(base.archive.encode())
    for path in sorted(lists.glob("*Release")):
        total.update(path.name.rpartition("_dists_")[2].encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _tarball_keys(tarball: Path, folder: Path) -> Path:
    """The archive's keys, out of a root file system's tarball."""
    wanted = re.compile(r"(\./)?(usr/share/keyrings/ubuntu-archive-keyring\.gpg|etc/apt/trusted\.gpg)")
    with tarfile.open(tarball) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() and wanted.fullmatch(member.name) else None
            if content is not None:
                path = folder / "archive.gpg"
                path.write_bytes(content.read())
                return path
    raise KilnError("holds no archive keys", where=str(tarball), fix="use the distribution's own base tarball")


def host_mirrors() -> dict[str, str]:
    """Suite to URL of its archive, as the machine's apt has them."""
    try:
        said = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise KilnError(f"apt does not tell its mirrors ({error})", where="apt-get", fix="repair it") from None
    mirrors: dict[str, str] = {}
    for line in said.splitlines():
        uri, release, component = line.split()
        if component == "main" and uri.startswith(("http://", "https://")):
            mirrors.setdefault(release, uri.rstrip("/"))
    return mirrors


def sources_list(base: Base, mirrors: Mapping[str, str], keyring: Path | None) -> str:
    """One-line sources for the base's suites: the channel's mirror, the host's for the suite, or the host's archive.

    A host of another release of the same distribution has the same archive: ``trixie`` tells where ``bookworm`` is.
    """
    lines = []
    for suite in base.suites:
        uri = base.mirrors.get(suite) or mirrors.get(suite)
        if uri is None and not base.mirrors:
            kind = suite.partition("-")[2]
            alike = [found for release, found in mirrors.items() if release.partition("-")[2] == kind]
            uri = alike[0] if alike and keyring is not None and keyring.is_file() else None
        if uri is None:
            raise KilnError(
                f"this machine's apt knows no mirror for {suite}",
                where="apt-get indextargets",
                fix=f"add a source for {suite} to the machine's apt configuration",
            )
        signed = f"[signed-by={keyring}] " if keyring else ""
        lines.append(f"deb {signed}{uri} {suite} {' '.join(base.components)}\n")
    return "".join(lines)


def carried_settings() -> list[tuple[str, str]]:
    """The machine's own apt settings on how to reach mirrors: proxies, timeouts, checks of dates."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    carried = []
    for line in dump.splitlines():
        setting = _SETTING.match(line)
        if setting and setting[2] and _CARRIED.match(setting[1]) and not _NOT_CARRIED.match(setting[1]):
            carried.append((setting[1], setting[2]))
    names = {name for name, _ in carried}
    for scheme in ("http", "https"):
        proxy = os.environ.get(f"{scheme}_proxy") or os.environ.get(f"{scheme.upper()}_PROXY")
        if proxy and f"Acquire::{scheme}::Proxy" not in names:
            carried.append((f"Acquire::{scheme}::Proxy", proxy))
    return carried


def _conf(settings: Sequence[tuple[str, str]]) -> str:
    return "".join(f'{name} "{value}";\n' for name, value in settings)


def apt_configuration(folder: Path, sources: str, *, proxies: Mapping[str, str] | None = None) -> None:
    """Writes what a container's apt needs into ``folder``, which it sees as /run/kiln.

    ``proxies``: host name to the proxy that answers for it.
    """
    (folder / "sources.list").write_text(sources, encoding="utf-8")
    settings = [
        *carried_settings(),
        ("Dir::Etc::sourcelist", "/run/kiln/sources.list"),
        # Caches and logs would be committed; /run is not.
        ("Dir::Cache::pkgcache", "/run/pkgcache.bin"),
        ("Dir::Cache::srcpkgcache", "/run/srcpkgcache.bin"),
        ("Dir::Log::Terminal", ""),
        ("Dir::Log::History", ""),
        ("Dir::Log::Planner", ""),
        ("DPkg::Options::", "--log=/dev/null"),
        # A power cut may take the container along: its layer exists only after the commit.
        ("DPkg::Options::", "--force-unsafe-io"),
        ("APT::Sandbox::User", "root"),
        ("Acquire::Languages", "none"),
        # The index is locked: it is right by its checksum, however old it is.
        ("Acquire::Check-Valid-Until", "false"),
    ]
    if HOST_CERTIFICATES.is_file():
        shutil.copyfile(HOST_CERTIFICATES, folder / "ca-certificates.crt")
        settings.append(("Acquire::https::CaInfo", "/run/kiln/ca-certificates.crt"))
    settings += [(f"Acquire::http::Proxy::{host}", proxy) for host, proxy in (proxies or {}).items()]
    (folder / "apt.conf").write_text(_conf(settings), encoding="utf-8")


def copy_lists(index: Path, target: Path) -> None:
    """A private copy of the locked package lists: apt writes into them. Fresh, so that no role fetches them again."""
    shutil.copytree(index / "lists", target)
    (target / "partial").mkdir(exist_ok=True)
    os.utime(target)


def make_root(
    base: Base,
    index: Path,
    tar: Path,
    work: Path,
    run: Callable[[Sequence[str], Mapping[str, str]], int],
    *,
    tarball: Path | None = None,
) -> None:
    """Makes the root file system's tar archive with mmdebstrap from the locked index.

    ``tarball``: a distribution's own base archive to start from; ``base.include`` is installed into it.
    ``run`` runs a command with extra environment and returns its exit code.
    """
    if shutil.which("mmdebstrap") is None:
        raise KilnError("mmdebstrap is not installed", where="PATH", fix="install the mmdebstrap package")
    config = work / "aptopts"
    settings = [
        *carried_settings(),
        ("Acquire::Languages", "none"),
        ("Acquire::Check-Valid-Until", "false"),
        ("APT::Sandbox::User", "root"),
    ]
    config.write_text(_conf(settings), encoding="utf-8")
    sources = work / "sources.list"
    shutil.copyfile(index / "sources.list", sources)
    lists = shlex.quote(str(index / "lists"))
    start = ["--variant=minbase"]
    end = []
    if tarball is not None:
        # Its own sources are the image's; during the installation only the locked ones count.
        own, place = shlex.quote(str(work / "sources.own")), '"$1/etc/apt/sources.list"'
        unpack = f'tar -C "$1" -xf {shlex.quote(str(tarball))}'
        start = ["--variant=custom", f"--setup-hook={unpack} && mv {place} {own}"]
        end = [f"--customize-hook=mv {own} {place}"]
    command = [
        "mmdebstrap",
        *start,
        # The locked lists instead of an update: the same packages tomorrow.
        "--skip=update",
        f'--setup-hook=cp -a {lists}/. "$1/var/lib/apt/lists/"',
        f"--aptopt={config}",
        "--dpkgopt=force-unsafe-io",
        f"--include={','.join(base.include)}",
        *end,
        # The mirror and the build's settings are this machine's, not the image's.
        '--customize-hook=rm -f "$1/etc/apt/sources.list.d/0000sources.list" "$1/etc/apt/apt.conf.d/99mmdebstrap" '
        '"$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"',
        '--customize-hook=rm -f "$1/var/log/dpkg.log" "$1/var/log/alternatives.log" "$1/var/log/bootstrap.log" '
        '"$1"/var/log/apt/* "$1/var/cache/ldconfig/aux-cache"',
        base.suite,
        str(tar),
        str(sources),
    ]
    if os.geteuid() == 0:
        # Its mounts die with it, even by SIGKILL.
        command = ["unshare", "--mount", "--propagation", "private", "--", *command]
    # Reproducible: mmdebstrap takes no file's time later than this.
    released = int((index / "lists").stat().st_mtime)
    if run(command, {"SOURCE_DATE_EPOCH": str(_release_time(index) or released)}):
        raise KilnError(f"mmdebstrap cannot make {base.suite}", fix="its own words stand in the log")


def _release_time(index: Path) -> int | None:
    """Seconds since 1970 of the newest release file's own date."""
    from email.utils import parsedate_to_datetime

    dates = []
    for path in (index / "lists").glob("*Release"):
        found = re.search(r"^Date: (.+)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if found:
            dates.append(int(parsedate_to_datetime(found[1]).timestamp()))
    return max(dates, default=None)


def _first_error(stderr: str) -> str:
    errors = [line.removeprefix("E: ") for line in stderr.splitlines() if line.startswith("E: ")]
    return errors[0] if errors else (stderr.strip().splitlines() or ["no reason given"])[-1]
