"""TensorBoard and Jupyter as the guide starts them on a node, used in a real browser; see build/screenshots."""

from __future__ import annotations

import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.support.wait import WebDriverWait

from browser import PAGE_S, browser, chart, log_in, open_notebook, run_all
from kiln.guide_terminal import Shell
from kiln.matrix import Matrix
from stage_container import PROJECT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SHOTS = PROJECT.root / "build" / "screenshots"
SPEC = Matrix(PROJECT, "registry").resolve(Matrix(PROJECT, "registry").releases()[-1], "cpu")

STEPS = 60
LOGGED = 6
"""The sample logs every tenth step."""

NOTEBOOK_S = 300
"""It trains for half a minute on an idle machine."""

ENOUGH = 0.95
"""Accuracy that the samples promise on the stand-in's digits."""


@dataclass(frozen=True)
class Node:
    """A running container of the image."""

    name: str
    ip: str

    @contextmanager
    def typed(self, *lines: str) -> Iterator[Shell]:
        """A login shell of the user in the newest virtualenv, in which the lines were typed; hung up at the end."""
        shell = Shell(["docker", "exec", "--interactive", "--tty", self.name, "su", "-", SPEC.node.user.name])
        try:
            workspace = SPEC.names()["workspaces"][SPEC.pythons[-1].workspace]
            for line in (f"source {workspace}/bin/activate", *lines):
                answer = shell.run(line, 200)
                assert answer.code == 0, answer.output
            yield shell
        finally:
            shell.interrupt()
            shell.close()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    image = f"deeplearning:{SPEC.release}-{SPEC.image}"
    start = ["docker", "run", "--detach", "--name", name, "--hostname=node", image, "sleep", "infinity"]
    subprocess.run(start, check=True, capture_output=True)
    try:
        shape = "{{.NetworkSettings.IPAddress}}"
        told = subprocess.run(
            ["docker", "inspect", "--format", shape, name], check=True, capture_output=True, text=True
        )
        yield Node(name, told.stdout.strip())
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def driver(node: Node) -> Iterator[Chrome]:
    with browser(node.ip) as made:
        yield made


def shoot(driver: Chrome, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    assert driver.save_screenshot(str(SHOTS / f"{name}.png"))


@contextmanager
def tensorboard(node: Node, *before: str) -> Iterator[str]:
    with node.typed(f"cd {SPEC.node.paths.samples}/tensorflow", *before) as shell:
        shell.begin("tensorboard --logdir=./tflog/")
        assert shell.await_output(re.compile(r"TensorBoard \S+ at http"), PAGE_S), shell.output()
        yield f"http://{node.ip}:{SPEC.node.ports.tensorboard}"


@contextmanager
def jupyter(node: Node, folder: str) -> Iterator[tuple[str, str]]:
    """Address and token, as Jupyter tells it."""
    with node.typed(f"cd {folder}") as shell:
        shell.begin("jupyter notebook")
        told = shell.await_output(re.compile(r"token=([0-9a-f]+)"), PAGE_S)
        assert told, shell.output()
        yield f"http://{node.ip}:{SPEC.node.ports.jupyter}", told[1]


def test_tensorboard_draws_the_loss_that_the_sample_logged(node: Node, driver: Chrome) -> None:
    with tensorboard(node, "rm -rf tflog", f"python mnist.py --steps {STEPS}") as address:
        driver.get(f"{address}/#scalars")
        points = chart(driver, "loss")
        shoot(driver, "tensorboard-loss")
        assert len(points) == LOGGED
        xs, ys = [x for x, _ in points], [y for _, y in points]
        assert xs == sorted(xs)
        assert len(set(xs)) == LOGGED
        # Pixels count downwards: a loss that falls ends further down.
        assert ys[-1] > ys[0]
        assert len(chart(driver, "test accuracy")) == 1
        assert chart(driver, "no such tag", 1) == []


def test_tensorboard_without_a_log_draws_nothing(node: Node, driver: Chrome) -> None:
    with tensorboard(node, "rm -rf tflog", "mkdir tflog") as address:
        driver.get("about:blank")
        driver.get(f"{address}/#scalars")
        WebDriverWait(driver, PAGE_S).until(lambda _: "No scalar data was found." in driver.page_source)
        assert chart(driver, "loss", 2) == []


def test_jupyter_runs_the_notebook_for_who_has_the_token(node: Node, driver: Chrome) -> None:
    with jupyter(node, f"{SPEC.node.paths.samples}/keras") as (address, token):
        assert log_in(driver, address, token[::-1] + "0") == "Invalid credentials"
        assert log_in(driver, address, token) == ""
        shoot(driver, "jupyter-folder")
        open_notebook(driver, "mnist.ipynb")
        cells = run_all(driver, NOTEBOOK_S)
        driver.execute_script("Jupyter.notebook.scroll_to_bottom()")
        shoot(driver, "jupyter-notebook")
    assert [cell.error for cell in cells if cell.error] == []
    assert sum(cell.pictures for cell in cells) == 1
    found = re.findall(r"test accuracy: (\d\.\d{4})", "".join(cell.text for cell in cells))
    assert len(found) == 1
    assert float(found[0]) >= ENOUGH


def test_a_notebook_that_fails_is_seen(node: Node, driver: Chrome) -> None:
    make = (
        "import nbformat.v4 as v; import nbformat; nbformat.write(v.new_notebook(cells=["
        "v.new_code_cell('print(1)'), v.new_code_cell('1 / 0'), v.new_code_cell('print(2)')]), 'broken.ipynb')"
    )
    with (
        node.typed(f'mkdir -p ~/broken && cd ~/broken && python -c "{make}"'),
        jupyter(node, "~/broken") as (at, token),
    ):
        driver.delete_all_cookies()
        assert log_in(driver, at, token) == ""
        open_notebook(driver, "broken.ipynb")
        cells = run_all(driver, PAGE_S)
    assert [bool(cell.error) for cell in cells] == [False, True, False]
    assert "ZeroDivisionError" in cells[1].error
