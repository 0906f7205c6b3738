"""Role login on the finished image: each policy, twice, and from one to the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kiln.image_spec import Login
from stage_container import Target, baked_plan, started
from tabled import USER

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

POLICIES: tuple[Login, ...] = ("published-password", "forced-change", "keys-only")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    (image,) = baked_plan("cpu").finals
    with started(image, tmp_path) as running:
        # sshd tells its settings only where it has keys.
        running.shell("ssh-keygen -A; mkdir -p /run/sshd")
        yield running


def looked_at(target: Target) -> tuple[bool, str, bool]:
    """Whether sshd takes passwords, the first sign of the user's hash, whether it must be changed."""
    asked = "passwordauthentication yes" in target.shell("sshd -T")
    _, stored, changed, *_ = target.shell(f"getent shadow {USER}").split(":")
    return asked, stored[0], changed == "0"


WANTED = {
    "published-password": (True, "$", False),
    "forced-change": (True, "$", True),
    "keys-only": (False, "*", False),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_holds_and_a_second_run_changes_nothing(target: Target, policy: Login) -> None:
    run = target.run_role("login", login_policy=policy)
    assert run.code == 0, run.output[-3000:]
    assert looked_at(target) == WANTED[policy]
    again = target.run_role("login", login_policy=policy)
    assert (again.code, again.changed) == (0, [])


def test_without_a_word_nobody_gets_in_by_password(target: Target) -> None:
    assert target.run_role("login").code == 0
    assert looked_at(target) == WANTED["keys-only"]


def test_a_forced_change_is_asked_for_at_the_login(target: Target) -> None:
    assert target.run_role("login", login_policy="forced-change").code == 0
    said = target.shell(f"su -s /bin/sh nobody -c 'id'; su - {USER} -c true </dev/null 2>&1 || true")
    assert "You are required to change your password immediately" in said


def test_an_unknown_policy_is_refused(target: Target) -> None:
    run = target.run_role("login", login_policy="anybody")
    assert run.code != 0
    assert "login_policy" in run.failure
