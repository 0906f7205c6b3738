"""Nothing of the build, and nothing that must differ between nodes, is in the image.

A running node has logs and keys of its own, so these look at the image's files, which the verifier unpacks no container
for: they run where the target has not booted.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from testinfra.host import Host


@pytest.fixture(autouse=True)
def _not_booted() -> None:
    if os.environ.get("KILN_TARGET_KIND") != "image":
        pytest.skip("a node that has booted has keys, logs and an id of its own")


def found(host: Host, expression: str) -> list[str]:
    paths: list[str] = host.run(f"find {expression} 2>/dev/null | head -n 5").stdout.split("\n")
    return [path for path in paths if path]


NOTHING_OF = [
    ("host keys", "/etc/ssh -name 'ssh_host_*'"),
    ("logs", "/var/log -type f -size +0"),
    ("package lists", "/var/lib/apt/lists -type f ! -name lock"),
    ("downloaded packages", "/var/cache/apt -name '*.deb'"),
    ("apt caches", "/var/cache/apt -name '*.bin'"),
    ("files of the build", "/run/kiln /root/.ansible /home/*/.ansible /tmp -mindepth 1"),
    ("histories", "/root /home -xdev -maxdepth 2 -name '.*_history'"),
    ("caches", "/root/.cache /home/*/.cache -mindepth 1"),
    ("authorized keys", "/root /home -xdev -maxdepth 3 -name authorized_keys -size +0"),
    (
        "credentials",
        "/root /home -xdev -maxdepth 3 ( -name id_rsa -o -name id_ed25519 -o -name .netrc -o -name .pypirc )",
    ),
    ("backups of accounts", "/etc/passwd- /etc/shadow- /etc/group- /etc/gshadow-"),
]


@pytest.mark.privileged
@pytest.mark.parametrize(("what", "expression"), NOTHING_OF, ids=[row[0] for row in NOTHING_OF])
def test_the_image_holds_no(host: Host, what: str, expression: str) -> None:
    assert found(host, expression.replace("(", "\\(").replace(")", "\\)")) == [], what


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


def test_no_proxy_and_no_index_of_the_build_is_configured(host: Host) -> None:
    files = "/etc/apt /etc/pip.conf /etc/environment /root/.config/pip /root/.pip"
    run = host.run(f"grep -rIl -i -E 'proxy|index-url|find-links' {files}")
    assert run.stdout.split() == []
    assert host.run("env").stdout.count("APT_CONFIG") == 0
