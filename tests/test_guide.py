"""The table of the user guide covers the guide, refuses what cannot be, and is what the generated guides say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kiln.errors import KilnError
from kiln.guide import Guide, read_guide
from kiln.guide_docs import render_docs, title
from kiln.guide_original import Original, find_gaps, read_original
from kiln.guide_run import Runner, choose
from kiln.matrix import Matrix
from kiln.project import Project, find_project
from tabled import HOME, PASSWORD, USER

PROJECT = find_project(Path(__file__).resolve().parent.parent)
MATRIX = Matrix(PROJECT, "registry")
RELEASE = MATRIX.releases()[-1]
IMAGES = MATRIX.images(RELEASE)
ORIGINAL = PROJECT.root / "docs" / "original" / "user-guide-1.2.zh.md"


def guide_of(image: str = "cpu", project: Project = PROJECT) -> Guide:
    return read_guide(project, Matrix(project, "registry").resolve(RELEASE, image))


def gaps(folder: Path, text: str) -> list[str]:
    """What is found when the published guide reads ``text``."""
    path = folder / "guide.md"
    path.write_text(text, encoding="utf-8")
    return find_gaps(guide_of(), read_original(path))


@pytest.fixture(scope="module")
def original() -> Original:
    return read_original(ORIGINAL)


@pytest.fixture(scope="module")
def text() -> str:
    return ORIGINAL.read_text(encoding="utf-8")


# It covers the guide


def test_the_original_is_read_whole(original: Original, text: str) -> None:
    blocks = re.findall(r"^```shell\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]
    assert len(blocks) == 26
    assert [typed.line for typed in original.commands] == lines
    assert {typed.at: text.splitlines()[typed.at - 1] for typed in original.commands} == {
        typed.at: typed.line for typed in original.commands
    }
    rows = [line for line in text.splitlines() if " | " in line and not re.fullmatch(r"[-| ]+", line)]
    assert sum(len(table) for tables in original.tables.values() for table in tables) == len(rows)


@pytest.mark.parametrize("image", IMAGES)
def test_every_command_and_promise_of_the_guide_has_an_entry(image: str, original: Original) -> None:
    assert find_gaps(guide_of(image), original) == []


def test_an_untracked_block_is_found(tmp_path: Path, text: str) -> None:
    more = text.replace("### Keras 测试示例\n", "### Keras 测试示例\n\n```shell\nkeras-tool --now\n```\n", 1)
    (found,) = gaps(tmp_path, more)
    assert re.fullmatch(r"guide\.md:\d+: keras-tool --now: the table lacks it", found)


def test_a_block_that_the_guide_lost_is_found(tmp_path: Path, text: str) -> None:
    (found,) = gaps(tmp_path, text.replace("```shell\nnvidia-smi\n```\n", ""))
    assert re.fullmatch(r"images/guide\.yml:\d+: gpu-use/1: the guide has no such line there: nvidia-smi", found)


def test_every_line_counts(tmp_path: Path, text: str, original: Original) -> None:
    lines = text.splitlines()
    for typed in original.commands[::7]:
        changed = [*lines[: typed.at - 1], typed.line + " --more", *lines[typed.at :]]
        assert len(gaps(tmp_path, "\n".join(changed))) >= 2, typed.line


def test_a_line_that_moves_to_another_section_is_found(tmp_path: Path, text: str) -> None:
    block = "```shell\nnvidia-smi\n```\n"
    moved = text.replace(block, "").replace("### 测试环境\n", f"### 测试环境\n{block}", 1)
    assert len(gaps(tmp_path, moved)) == 2


@pytest.mark.parametrize(
    "block",
    [
        "```shell\nkeras-tool --now\n```",
        "  ```shell\n  keras-tool --now\n  ```",
        "- ```shell\n  keras-tool --now\n  ```",
        "~~~\nkeras-tool --now\n~~~",
        "````\nkeras-tool --now\n````",
        "    keras-tool --now",
        "\tkeras-tool --now",
    ],
)
def test_a_block_of_any_form_is_found(tmp_path: Path, text: str, block: str) -> None:
    (found,) = gaps(tmp_path, text.replace("### Keras 测试示例\n", f"### Keras 测试示例\n\n{block}\n\n", 1))
    assert found.endswith(": keras-tool --now: the table lacks it")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("目前不支持多机分布式训练", "日志在/var/log/caffe", "/var/log/caffe: no entry speaks of it"),
        ("目前不支持多机分布式训练", "端口 7777", "7777: no entry speaks of it"),
        ("目前不支持多机分布式训练", f"在 {HOME}/caffe", f"{HOME}/caffe: no entry speaks of it"),
        ("默认端口号为 `6006`", "默认端口号为 `6007`", "`6007`: no entry speaks of it"),
        (PASSWORD, "another", f"{USER}/another: no entry speaks of it"),
        ("PyTorch 从 Torch 发展而来", f"PyTorch 在 {HOME}/torch", f"{HOME}/torch: no entry speaks of it"),
        ("保持系统自身 python 环境的清洁", "", "the guide does not say so in 测试环境"),
        ("TenssorFlow", "TensorFlow", "erratum tensorflow-spelling: the guide does not say so"),
    ],
)
def test_a_changed_promise_is_found(tmp_path: Path, text: str, old: str, new: str, says: str) -> None:
    assert old in text
    found = gaps(tmp_path, text.replace(old, new))
    assert any(says in line for line in found), found


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (r"cuDNN[\d.]+ 和", "cuDNN7.9.9 和", "7.9.9: no entry speaks of it"),
        (r"CUDA[\d.]+ (?=.*CUDA([\d.]+))", r"CUDA\1 ", "the guide does not say so in 青云深度学习平台"),
        (r"Caffe\(BVLC/Intel\)", "Caffe(Intel/BVLC)", "the guide does not say so in 青云深度学习平台"),
        (r"(TensorFlow\(([\d.]+).*PyTorch\()[\d.]+", r"\1\2", "the guide does not say so in 青云深度学习平台"),
        (r"(Python 的版本为 .* 和) \S+", r"\1 3.9", "3.9: no entry speaks of it"),
        (r"更新为TensorFlow [\d.]+", "更新为TensorFlow 9.9.9", "the guide does not say so in v1.2"),
    ],
)
def test_a_changed_version_is_found(tmp_path: Path, text: str, old: str, new: str, says: str) -> None:
    changed, number = re.subn(old, new, text, count=1)
    assert number == 1
    found = gaps(tmp_path, changed)
    assert any(says in line for line in found), found


def test_a_block_that_does_not_end_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(KilnError, match=r"guide\.md:\d+: a fenced block does not end"):
        gaps(tmp_path, text + "\n```shell\nls\n")


def test_the_guides_versions_are_the_tables(original: Original) -> None:
    rows = {row[0]: row[1:] for row in original.tables["青云深度学习平台"][0][1:]}
    caffe = {"bvlc": "BVLC", "intel": "Intel"}
    specs = [MATRIX.resolve(RELEASE, image) for image in IMAGES]
    assert rows == {
        title(spec): [spec.row.tensorflow, caffe[spec.row.caffe], spec.row.pytorch, spec.row.keras] for spec in specs
    }


def test_the_table_repeats_no_value_of_the_tables() -> None:
    text = (PROJECT.images / "guide.yml").read_text(encoding="utf-8")
    node = MATRIX.node
    values = [node.user.home, node.user.password, node.paths.mnist, node.paths.gpu_monitor]
    values += [str(port) for port in (node.ports.jupyter, node.ports.tensorboard)]
    values += [version for image in IMAGES for version in MATRIX.resolve(RELEASE, image).row.python]
    assert [value for value in values if value in text] == []


# It refuses what cannot be


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("        output: all workers are done\n", "        outptu: x\n", "unknown key outptu"),
        ("images: gpu\n        not_run", "images: tpu\n        not_run", "tpu"),
        ("prompt: ^\\(py2\\)", "prompt: ^(py2", "prompt is no regular expression"),
        ("output: all workers are done", "output: '[a'", "output is no regular expression"),
        ("workspaces: [py2, py3]", "workspaces: [py2, py4]", "py4 is no workspace"),
        ("component: [caffe, digits]", "component: [coffee]", "coffee is no component"),
        ("node: 2", "node: 3", "3"),
        ("seconds: 600", "seconds: 0", "seconds must be more than 0"),
        ("seconds: 600", "seconds: soon", "expected float, got str"),
        ("  tensorboard-port:\n", "  tensorboard:\n", "tensorboard is a block and a promise"),
        ("    quote: 在详情页点击 `新增节点` 按钮\n", "", "key quote is missing"),
        ("      - line: nvidia-smi\n", "      - command: nvidia-smi\n", "unknown key command"),
        ("{{ node.paths.samples }}/pycaffe\n", "{{ node.paths.simples }}/pycaffe\n", "simples"),
        ("errata:\n", "slips:\n", "unknown key slips"),
        ("        regardless: true\n        added: takes it back\n", "", "key added is missing"),
        ("        output: token=(?P<token>[0-9a-f]+)\n", "", "key output is missing"),
    ],
)
def test_a_bad_table_is_refused_in_one_sentence(project: Project, old: str, new: str, says: str) -> None:
    path = project.images / "guide.yml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(KilnError) as raised:
        guide_of(project=project)
    assert says in str(raised.value)
    assert re.match(r"images/guide\.yml:\d+: [^\n]*$", str(raised.value))


def test_a_command_that_is_not_there_is_refused() -> None:
    with pytest.raises(KilnError, match="no command tensorbord"):
        choose(guide_of(), "tensorbord")


# What is not run says why


@pytest.mark.parametrize("image", IMAGES)
def test_whatever_is_not_run_has_a_reason(image: str) -> None:
    guide = guide_of(image)
    runner = Runner(PROJECT, guide, quick=True)
    reasons = {entry.name: runner.why_not(entry) for entry in guide.entries}
    assert reasons["activation/1"] == ""
    assert reasons["tensorflow/2"] == "takes long: runs without --quick"
    assert "GPU" in reasons["gpu-use/1"]
    assert bool(reasons["cuda-version/1"]) == (image == "cpu")
    complete = Runner(PROJECT, guide)
    assert {name for name, reason in reasons.items() if "--quick" in reason} == {
        entry.name for entry in guide.entries if entry.command.slow and not complete.why_not(entry)
    }


# The generated guides


def test_the_committed_guides_are_what_is_rendered() -> None:
    for path, wanted in render_docs(PROJECT, "registry").items():
        assert path.read_text(encoding="utf-8") == wanted, f"run make docs: {path.name} differs"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_generated_guide_has_every_block_and_every_slip(language: str) -> None:
    page = (PROJECT.root / "docs" / f"guide.{language}.md").read_text(encoding="utf-8")
    guide = guide_of()
    shown = re.findall(r"^```shell\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    wanted = ["".join(f"{guide.corrected(entry)}\n" for entry in block.entries) for block in guide.blocks]
    assert sorted(shown) == sorted(wanted)
    assert [
        name for name, slip in guide.errata.items() if guide.text(getattr(slip.why, language), name) not in page
    ] == []
    body = page.partition("\n## Errata\n" if language == "en" else "\n## 勘误\n")[0]
    assert "/inception_v2_2016_08_28.tar.gz" in body
    slips = ["tar xvf https://", "TenssorFlow", "启动一下命令", "尚未支持CPU"]
    assert [slip for slip in slips if slip in body] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_generated_guide_has_every_download(language: str, text: str) -> None:
    page = (PROJECT.root / "docs" / f"guide.{language}.md").read_text(encoding="utf-8")
    address = re.compile(r"https://appcenter-deeplearning[^\s)\]]+")
    wanted = set(address.findall(text)) - {
        # Was given for what is on the node.
        "https://appcenter-deeplearning.sh1a.qingstor.com/pytorch/mnist_dist.py",
    }
    assert wanted - set(address.findall(page)) == set()
    assert len(wanted) >= 70


def test_the_guides_follow_the_tables(project: Project) -> None:
    node = project.images / "node.yml"
    node.write_text(node.read_text(encoding="utf-8").replace("jupyter: 8888", "jupyter: 9999"), encoding="utf-8")
    (project.root / "docs").symlink_to(PROJECT.root / "docs")
    pages = render_docs(project, "registry").values()
    assert all("`9999`" in page or "port 9999" in page for page in pages)


def test_a_template_that_asks_for_what_is_not_there_is_refused(project: Project) -> None:
    (project.root / "docs").symlink_to(PROJECT.root / "docs")
    template = project.templates / "guide" / "guide.en.md.j2"
    template.write_text("{{ node.paths.nothing }}", encoding="utf-8")
    with pytest.raises(KilnError, match=r"templates/guide/guide\.en\.md\.j2: cannot be rendered"):
        render_docs(project, "registry")
