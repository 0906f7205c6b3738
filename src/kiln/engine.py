"""The Docker engine: which stages it holds, what a dead bake left in it."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kiln import owner
from kiln.errors import KilnError
from kiln.owner import OWNER_LABEL

if TYPE_CHECKING:
    from docker import APIClient

STAGES = "kiln/stage"
"""Repository of the stages' images; the tag is the stage's digest."""

TIMEOUT_S = 600
"""For one answer: a commit or an import of gigabytes on a busy disk takes minutes."""

DRIVER_DEVICE = Path("/dev/nvidiactl")
"""There where NVIDIA's driver is loaded."""

_SIOCGIFADDR = 0x8915
"""netdevice(7): asks an interface for its address; Linux's <linux/sockios.h>."""

_DEFAULT_HOST = "unix:///var/run/docker.sock"


def engine_host() -> str:
    """Where the engine listens: $DOCKER_HOST, else the local socket."""
    return os.environ.get("DOCKER_HOST") or _DEFAULT_HOST


def stage_tags() -> dict[str, frozenset[str]]:
    """Every stage's digest in the engine, with the other references of its image.

    Asks the local socket itself: importing the SDK costs more than the rest of a plan.
    """
    host = engine_host()
    local = host.startswith("unix://")
    return _stage_tags(_get(host.removeprefix("unix://"), "/images/json") if local else Engine().images())


def cached_stages() -> set[str]:
    """The digests of the stages whose images the engine holds."""
    return set(stage_tags())


def _stage_tags(images: list[dict[str, Any]]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for image in images:
        references = image.get("RepoTags") or []
        digests = [reference.partition(":")[2] for reference in references if reference.startswith(f"{STAGES}:")]
        others = frozenset(reference for reference in references if not reference.startswith(f"{STAGES}:"))
        found |= dict.fromkeys(digests, others)
    return found


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def _get(path: str, url: str) -> Any:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", url)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(error, f"unix://{path}") from None
    finally:
        connection.close()
    if answer.status != HTTPStatus.OK:
        raise KilnError(
            f"the Docker engine answers {answer.status} to {quote(url)}", where=f"unix://{path}", fix="see its log"
        )
    try:
        return json.loads(body)
    except ValueError:
        raise unreachable(ConnectionError("its answer is no JSON"), f"unix://{path}") from None


def unreachable(error: BaseException, host: str) -> KilnError:
    """The KilnError for an engine that cannot be talked to."""
    if isinstance(error, PermissionError):
        return KilnError(
            "no permission to use the Docker engine",
            where=host,
            fix="run as root, or join the group that owns the socket (usually docker) and log in again",
        )
    return KilnError(
        f"no Docker engine answers ({getattr(error, 'strerror', None) or ' '.join(str(error).split())})",
        where=host,
        fix="start it (systemctl start docker), or point DOCKER_HOST at one",
    )


@dataclass(frozen=True)
class Container:
    """One container by name, running or not."""

    id: str
    name: str
    labels: dict[str, str] = field(default_factory=dict)


class Engine:
    """The engine through the Docker SDK, which is imported at the first use."""

    @cached_property
    def _api(self) -> APIClient:
        from docker import APIClient

        with _told():
            try:
                return APIClient(base_url=engine_host(), version="auto", timeout=TIMEOUT_S)
            except ValueError as error:  # DOCKER_HOST is no address
                raise unreachable(error, engine_host()) from None

    def check(self) -> None:
        """Raises KilnError when the engine cannot be used."""
        with _told():
            self._api.ping()

    def root(self) -> Path:
        """The folder where the engine keeps images, as the engine sees it."""
        with _told():
            return Path(self._api.info()["DockerRootDir"])

    def gives_gpus(self) -> bool:
        """Whether containers can be given this machine's GPUs: it has a driver, and the engine NVIDIA's runtime."""
        with _told():
            runtimes = self._api.info().get("Runtimes") or {}
        return "nvidia" in runtimes and DRIVER_DEVICE.exists()

    def gateway(self) -> str:
        """Address of this machine as containers on the default bridge see it."""
        with _told():
            network = self._api.inspect_network("bridge")
        for config in network["IPAM"]["Config"]:
            if config.get("Gateway"):
                return str(config["Gateway"])
        # An engine that found its bridge made already does not tell the gateway.
        return _interface_address(network["Options"].get("com.docker.network.bridge.name", "docker0"))

    def images(self) -> list[dict[str, Any]]:
        """Every image as the engine lists it."""
        with _told():
            listed: list[dict[str, Any]] = self._api.images()
        return listed

    def image_exists(self, digest: str) -> bool:
        """Whether the engine holds the stage's image."""
        return digest in _stage_tags(self.images())

    def tag(self, digest: str, reference: str) -> None:
        """Names the stage's image ``reference``, taking the name from any other image."""
        repository, _, tag = reference.rpartition(":")
        with _told():
            self._api.tag(f"{STAGES}:{digest}", repository, tag, force=True)

    def import_tar(self, path: Path, digest: str, changes: list[str]) -> None:
        """Makes a tar archive of a root file system the stage's image; named only once it is whole."""
        with _told():
            answer = self._api.import_image(src=str(path), repository=STAGES, tag=digest, changes=changes)
        for line in answer.splitlines():
            said = json.loads(line)
            if "error" in said:
                raise KilnError(f"the Docker engine cannot import it ({said['error']})", where=str(path))

    def containers(self, prefix: str) -> list[Container]:
        """Containers, dead ones included, whose name starts with ``prefix``."""
        with _told():
            listed = self._api.containers(all=True, filters={"name": f"^/{prefix}"})
        return [Container(entry["Id"], entry["Names"][0].lstrip("/"), entry["Labels"] or {}) for entry in listed]

    def remove_container(self, container: Container) -> None:
        """Removes it whatever its state; one that is gone already, or that somebody else removes just now, is fine."""
        from docker.errors import APIError, NotFound

        with _told():
            try:
                if self._api.inspect_container(container.id)["State"]["Paused"]:
                    self._api.unpause(container.id)
                self._api.remove_container(container.id, v=True, force=True)
            except NotFound:
                return
            except APIError as error:
                if "already in progress" not in str(error):
                    raise
                with suppress(NotFound):
                    self._api.wait(container.id, condition="removed")

    def container_labels(self, name: str) -> dict[str, str] | None:
        """The labels of a running container; none where there is no such container."""
        from docker.errors import NotFound

        with _told():
            try:
                found = self._api.inspect_container(name)
            except NotFound:
                return None
        if not found["State"]["Running"]:
            raise KilnError(f"container {name} is not running", fix="start it, or name its image")
        return dict(found["Config"]["Labels"] or {})

    def image_labels(self, reference: str) -> dict[str, str] | None:
        """The labels of an image; none where there is no such image."""
        from docker.errors import APIError

        with _told():
            try:
                found = self._api.inspect_image(reference)
            except APIError as error:
                if error.status_code in (400, 404):  # 400: no reference at all
                    return None
                raise
        return dict(found["Config"]["Labels"] or {})

    def run_idle(self, reference: str, name: str) -> None:
        """Starts a container of the image that does nothing; removes those of processes that are dead."""
        from docker.types import DeviceRequest

        self.remove_orphans()
        requests = [DeviceRequest(count=-1, capabilities=[["gpu"]])] if self.gives_gpus() else None
        with _told():
            made = self._api.create_container(
                reference,
                command=["sleep", "infinity"],
                name=name,
                entrypoint="",
                labels={OWNER_LABEL: owner.myself()},
                host_config=self._api.create_host_config(device_requests=requests),
            )
            self._api.start(made["Id"])

    def remove_orphans(self) -> None:
        """Removes the containers of ``run_idle`` that stopped, or whose process is dead."""
        with _told():
            listed = self._api.containers(all=True, filters={"label": OWNER_LABEL})
        for entry in listed:
            if entry["State"] in ("exited", "dead") or owner.is_dead(entry["Labels"][OWNER_LABEL]):
                self.remove_container(Container(entry["Id"], entry["Names"][0].lstrip("/")))

    def layers(self, reference: str) -> list[tuple[str, str, int]]:
        """An image's layers, lowest first: (content's digest, stage that made it, bytes unpacked)."""
        with _told():
            inspected = self._api.inspect_image(reference)
            history = self._api.history(reference)
            listed = self._api.images()
        stages = {entry["Id"]: (entry.get("Labels") or {}).get(STAGE_LABEL, "") for entry in listed}
        sized = [entry for entry in reversed(history) if entry["Size"]]
        names = [stages.get(entry["Id"]) or "other" for entry in sized]
        return list(
            zip(inspected["RootFS"]["Layers"][-len(sized) :], names, (entry["Size"] for entry in sized), strict=False)
        )

    def remove_image(self, reference: str) -> bool:
        """Takes the name from an image, and removes it unless something else holds it; False where that cannot be."""
        from docker.errors import APIError

        with _told():
            try:
                self._api.remove_image(reference)
            except APIError as error:
                if error.status_code == HTTPStatus.NOT_FOUND:
                    return True
                if error.status_code == HTTPStatus.CONFLICT:
                    return False
                raise
        return True

    def remove_untagged(self) -> int:
        """Removes images that lost their name and were made by kiln; returns how many.

        One that a container or another image stands on stays: it goes with that one's end.
        """
        from docker.errors import APIError

        removed = 0
        with _told():
            for entry in self._api.images(filters={"dangling": True, "label": STAGE_LABEL}):
                try:
                    self._api.remove_image(entry["Id"], noprune=True)
                except APIError as error:
                    if error.status_code not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                        raise
                else:
                    removed += 1
        return removed


STAGE_LABEL = "org.deeplearning.kiln.stage"
DIGEST_LABEL = "org.deeplearning.kiln.digest"
CHANNEL_LABEL = "org.deeplearning.channel"


def _interface_address(name: str) -> str:
    """IPv4 address of a network interface of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", os.fsencode(name)[:15]))
        except OSError as error:
            raise KilnError(
                f"has no IPv4 address ({error.strerror})", where=f"interface {name}", fix="give the default bridge one"
            ) from None
    return socket.inet_ntoa(answer[20:24])


@contextmanager
def _told() -> Iterator[None]:
    """Turns the SDK's errors into KilnErrors."""
    import requests
    from docker.errors import APIError, DockerException

    try:
        yield
    except APIError as error:
        raise KilnError(f"the Docker engine refuses: {error.explanation or error}", where=engine_host()) from None
    except (DockerException, requests.RequestException) as error:
        raise unreachable(_system_error(error) or error, engine_host()) from None


def _system_error(error: BaseException) -> OSError | None:
    """What the system said, out of the errors that the SDK, requests and urllib3 wrap around it."""
    if isinstance(error, OSError) and error.errno:
        return error
    for inner in (error.__cause__, error.__context__, *error.args, getattr(error, "reason", None)):
        found = _system_error(inner) if isinstance(inner, BaseException) else None
        if found:
            return found
    return None
