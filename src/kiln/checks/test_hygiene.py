"""Nothing of the build, and nothing that must differ between nodes, is in the image.

A running node has logs and keys of its own, so these look at the image's files, which the verifier unpacks no container
for: they run where the target has not booted.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from testinfra.host import Host

from kiln.checks.asking import lines


@pytest.fixture(autouse=True)
def _not_booted() -> None:
    if os.environ.get("KILN_TARGET_KIND") != "image":
        pytest.skip("a node that has booted has keys, logs and an id of its own")


def ask(host: Host, command: str, places: str) -> Any:
    """Runs ``command`` with those of ``places``, patterns too, that are there; what is not there holds nothing."""
    there = f'set --; for place in {places}; do [ -e "$place" ] && set -- "$@" "$place"; done; [ $# = 0 ]'
    return host.run(f"{there} || {command}")


# What, where, and by which of find's expressions.
NOTHING_OF = [
    ("host keys", "/etc/ssh", "-name 'ssh_host_*'"),
    ("logs", "/var/log", "-type f -size +0"),
    ("package lists", "/var/lib/apt/lists", "-type f ! -name lock"),
    ("downloaded packages", "/var/cache/apt", "-name '*.deb'"),
    ("apt caches", "/var/cache/apt", "-name '*.bin'"),
    ("files of the build", "/run/kiln /root/.ansible /home/*/.ansible /tmp", "-mindepth 1"),
    ("histories", "/root /home", "-xdev -maxdepth 2 -name '.*_history'"),
    ("caches", "/root/.cache /home/*/.cache", "-mindepth 1"),
    ("authorized keys", "/root /home", "-xdev -maxdepth 3 -name authorized_keys -size +0"),
    ("private keys", "/root/.ssh /home/*/.ssh", "-name 'id_*' -o -name '*.pem'"),
    ("credentials", "/root /home", "-xdev -maxdepth 2 -name .netrc -o -name .pypirc"),
    ("credentials of Git", "/root /home", "-xdev -maxdepth 2 -name .git-credentials"),
    ("credentials of clouds", "/root/.aws /home/*/.aws /root/.docker /home/*/.docker", "-mindepth 1"),
    ("seeds of random numbers", "/var/lib/systemd/random-seed /var/lib/systemd/credential.secret", ""),
    ("backups of accounts", "/etc/passwd- /etc/shadow- /etc/group- /etc/gshadow-", ""),
]


@pytest.mark.privileged
@pytest.mark.parametrize(("what", "places", "expression"), NOTHING_OF, ids=[row[0] for row in NOTHING_OF])
def test_the_image_holds_no(host: Host, what: str, places: str, expression: str) -> None:
    assert lines(ask(host, f'find "$@" {expression}', places))[:5] == [], what


def test_the_machine_id_is_uninitialised(host: Host) -> None:
    assert host.file("/etc/machine-id").content_string.strip() in ("", "uninitialized")
    assert not host.file("/var/lib/dbus/machine-id").exists or host.file("/var/lib/dbus/machine-id").is_symlink


def test_apt_asks_the_distributions_own_archive(host: Host) -> None:
    documented = host.run(
        "sed -n 's/^deb \\(.*\\) main.*/deb \\1 main/p' /usr/share/doc/apt/examples/sources.list"
    ).stdout
    assert documented.strip()
    assert host.file("/etc/apt/sources.list").content_string == documented


def test_apt_asks_nobody_else(host: Host, spec: Any) -> None:
    folder = "/etc/apt/sources.list.d"
    wanted = {}
    for name, component in {"cuda": "cuda", "machine-learning": "cudnn"}.items():
        if spec["device"] == "gpu":
            settings = spec["components"][component]["settings"]
            address = f"{settings['scheme']}://{settings['host']}{settings['path']}"
            wanted[f"nvidia-{name}.sources"] = ["yes" if settings["enabled"] else "no", address]
    lines = {name: host.file(f"{folder}/{name}").content_string for name in host.file(folder).listdir()}
    fields = {name: dict(line.partition(": ")[::2] for line in text.splitlines()) for name, text in lines.items()}
    assert {name: [entry.get("Enabled"), entry.get("URIs")] for name, entry in fields.items()} == wanted


def test_no_proxy_and_no_index_of_the_build_is_configured(host: Host, spec: Any) -> None:
    places = "/etc/apt /etc/pip.conf /etc/environment /etc/profile.d /root/.config/pip /root/.pip"
    places += " /home/*/.config/pip /home/*/.pip /home/*/.profile /home/*/.bashrc"
    places += "".join(f" {path}/pip.conf" for path in [*spec["workspaces"].values(), spec["node"]["paths"]["qsctl"]])
    # It ends with 1 where it finds nothing.
    found = ask(host, "grep -rIl -i -E 'proxy|index-url|find-links' \"$@\"", places)
    assert lines(found, codes=(0, 1)) == []
    assert "APT_CONFIG" not in host.check_output("env")
