"""The machine's Python package index: where a file is, and which files a list of pins leads to."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

import requests
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version
from pypi_simple import (
    PYPI_SIMPLE_ENDPOINT,
    DistributionPackage,
    NoSuchProjectError,
    PyPISimple,
    UnsupportedContentTypeError,
    UnsupportedRepoVersionError,
)

from kiln.errors import KilnError
from kiln.pins import SDIST_ENDINGS, Pin

TIMEOUT_S = (5.0, 60.0)
"""To connect to an index, and for its silence."""

RETRIES = 3
"""Further tries per page after the first failed."""

PAUSE_S = 0.5
"""Before the second try; twice as long before each further one."""


@lru_cache(maxsize=1)
def pip_settings() -> dict[str, str]:
    """pip's own settings on this machine, e.g. ``index-url``; the environment wins over files, as in pip."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    settings: dict[str, str] = {}
    for line in sorted(said.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = str(ast.literal_eval(value))  # pip writes a Python string
    return settings


def index_urls() -> list[str]:
    """The indexes that pip would ask, the main one first; those that are folders of this machine left out."""
    settings = pip_settings()
    named = [settings.get("index-url") or PYPI_SIMPLE_ENDPOINT, *settings.get("extra-index-url", "").split()]
    return [url for url in dict.fromkeys(named) if url.startswith(("http://", "https://"))]


def shown(url: str) -> str:
    """``url`` as it may be printed: without the login that pip's settings may hold in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def new_session() -> requests.Session:
    """A session with pip's certificate settings; proxies come from the environment."""
    session = requests.Session()
    certificates = pip_settings().get("cert") or os.environ.get("REQUESTS_CA_BUNDLE")
    if certificates:
        session.verify = certificates
    return session


class Index:
    """The pages of the machine's indexes, each asked once."""

    def __init__(self, session: requests.Session | None = None, urls: list[str] | None = None) -> None:
        self.session = session or new_session()
        self.urls = urls if urls is not None else index_urls()
        self._pages: dict[str, list[DistributionPackage]] = {}
        self._guards: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def files(self, project: str) -> list[DistributionPackage]:
        """Every file of a project; raises KilnError when no index has it or none answers."""
        name = canonicalize_name(project)
        with self._guards[name]:
            if name not in self._pages:
                found = [package for url in self.urls for package in self._page(url, name)]
                if not found:
                    raise KilnError(
                        f"the Python index has no project {project}",
                        where=", ".join(map(shown, self.urls)),
                        fix="correct the name",
                    )
                self._pages[name] = found
            return self._pages[name]

    def _page(self, url: str, name: str) -> list[DistributionPackage]:
        """The project's files on one index; none where it has no such project."""
        for attempt in range(RETRIES + 1):
            try:
                return PyPISimple(url, session=self.session).get_project_page(name, timeout=TIMEOUT_S).packages
            except NoSuchProjectError:
                return []
            except (requests.RequestException, UnsupportedContentTypeError, UnsupportedRepoVersionError) as error:
                if attempt == RETRIES or not _may_pass(error):
                    raise KilnError(
                        f"the Python index does not answer for {name} ({_words(error)})",
                        where=shown(url),
                        fix="check the network and pip's configuration (pip config list)",
                    ) from None
            time.sleep(PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    def url(self, project: str, file: str) -> str:
        """Where ``file`` of ``project`` is."""
        for package in self.files(project):
            if package.filename == file:
                return package.url
        raise KilnError(
            f"the Python index no longer has {file}",
            where=f"project {project}",
            fix="use a mirror that keeps old files, or lock another version with kiln artifacts lock",
        )

    def choose(self, pin: Pin, tags: frozenset[Tag]) -> tuple[str, str]:
        """(file, sha256) of the best file of a pin for an interpreter: a wheel it can load, else the source archive."""
        wheels: list[tuple[int, int, str, str]] = []
        sources: list[tuple[int, int, str, str]] = []
        for package in self.files(pin.project):
            digest = package.digests.get("sha256")
            if digest is None or package.version is None:
                continue
            try:
                same = Version(package.version) == Version(pin.version)
                wheel = parse_wheel_filename(package.filename) if same and package.package_type == "wheel" else None
            except ValueError:
                continue  # an old name that no rule of today fits
            if not same:
                continue
            if wheel:
                _, _, build, offered = wheel
                fits = offered & tags
                if fits:
                    # A wheel for this very platform before a pure one; the newest build of several.
                    pure = all(tag.platform == "any" for tag in fits)
                    wheels.append((pure, -build[0] if build else 0, package.filename, digest))
            elif package.package_type == "sdist" and package.filename.endswith(SDIST_ENDINGS):
                sources.append((SDIST_ENDINGS.index(_ending(package.filename)), 0, package.filename, digest))
        for candidates in (wheels, sources):
            if candidates:
                _, _, file, digest = min(candidates)
                return file, digest
        raise KilnError(
            f"the Python index has no file of {pin} for this interpreter",
            where=f"project {pin.project}",
            fix="pin a version that has one",
        )


def _may_pass(error: Exception) -> bool:
    """Whether the same question may be answered later: not where the index is out of reach, or answers and refuses."""
    if isinstance(error, requests.HTTPError):
        status = error.response.status_code
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
    return isinstance(error, requests.RequestException) and not isinstance(error, requests.ConnectTimeout)


def _words(error: Exception) -> str:
    return f"it answers {error.response.status_code}" if isinstance(error, requests.HTTPError) else type(error).__name__


def _ending(file: str) -> str:
    return next(ending for ending in SDIST_ENDINGS if file.endswith(ending))
