"""What makes a stage besides its playbook and its inputs: what its processes find, and what its image says of itself.

Part of every digest, so whatever can stand elsewhere does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

# Roles, collections and variables of the caller's own would be baked under the same digest.
_FOREIGN = re.compile(r"(ANSIBLE|PACKER|PKR)_")
_REACH = ("PACKER_CONFIG_DIR", "PACKER_GITHUB_API_TOKEN", "PACKER_PLUGIN_PATH")
"""How the machine gets at Packer's plugins, as proxies are how it gets at mirrors."""


def environment(caller: Mapping[str, str], run: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """What a stage's processes get: the ``caller``'s environment without what would change the stage, and ``run``."""
    kept = {name: value for name, value in caller.items() if name in _REACH or not _FOREIGN.match(name)}
    return {**kept, **run, "TMPDIR": str(temporary), "LC_ALL": "C.UTF-8"}


def changes(labels: Mapping[str, str]) -> list[str]:
    """Dockerfile lines for the stage's image."""
    quoted = {name: json.dumps(value).replace("$", r"\$") for name, value in labels.items()}
    return [*(f'LABEL "{name}"={value}' for name, value in quoted.items()), 'CMD ["/bin/bash"]']
