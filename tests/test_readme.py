"""Every command of the README does what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line.removeprefix("$ ") for block in BLOCKS for line in block.splitlines()]
INLINE = re.findall(r"`((?:make|kiln) [^`]*)`", README)


def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "KILN_ROOT": str(ROOT)}
    # The images are baked before the tests: what is run here finds nothing to build.
    command = f"make -C {shlex.quote(str(ROOT))}" + command[4:] if command.startswith("make ") else command
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, capture_output=True, text=True, check=False, env=environment
    )


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 8
    assert all(line.startswith("$ ") for block in BLOCKS for line in block.splitlines())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run, one after the other, with the tables at hand."""
    made = tmp_path_factory.mktemp("readme")
    (made / "images").symlink_to(ROOT / "images")
    return made


@pytest.mark.engine
@pytest.mark.timeout(400)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(command: str, folder: Path) -> None:
    done = run(command, folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (done.stdout + done.stderr).strip()


@pytest.mark.parametrize("command", INLINE)
def test_a_command_in_a_sentence_exists(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        target = f"-n {words[1]}" if len(words) > 1 else "-n"
        assert run(f"make {target}", tmp_path).returncode == 0
    else:
        commands = [word for word in words[1:] if re.fullmatch(r"[a-z]+", word)]
        depth = 2 if commands[0] in ("artifacts", "data") else 1
        assert run(shlex.join(["kiln", *commands[:depth], "--help"]), tmp_path).returncode == 0


def test_what_the_table_of_substitutions_says_is_what_the_channel_declares() -> None:
    import yaml

    channel = yaml.safe_load((ROOT / "images" / "channels" / "registry.yml").read_text(encoding="utf-8"))
    section = README[README.index("| instead of |") : README.index("The channel `upstream`")]
    for entry in channel["substitutions"]:
        for word in (entry["component"], entry["by"]) if "by" in entry else (entry["component"],):
            known = {"base": "Ubuntu", "digits": "MNIST", "intel": "Intel"}.get(word, word)
            assert known.lower() in section.lower(), (
                f"the README does not tell that {entry['component']} is substituted"
            )
