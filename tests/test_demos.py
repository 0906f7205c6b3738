"""The demos of the guide on a node: their packages install as it says, and its lines run on small data.

What the guide downloads, the scripts of tests/demos make on the node; every other line is typed as the guide has it.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kiln.bootstrap import carried_settings, host_mirrors
from kiln.errors import KilnError
from kiln.guide import Block, read_guide
from kiln.index import Index, index_urls, new_session, pip_settings
from stage_container import CHECKOUT, PROJECT
from tabled import NODE, SPEC, USER

GUIDE = read_guide(PROJECT, SPEC)

DEMOS = "/opt/demos"
"""Where tests/demos stands on the node."""

# What stands on the node in place of a download: made by these, in the folder into which the guide downloads it.
DOWNLOADS = {
    "Slim-InceptionV1.tar": (
        "py2",
        f"python {DEMOS}/inception/draw.py Slim-InceptionV1 && cp {DEMOS}/inception/*.py Slim-InceptionV1"
        " && tar cf Slim-InceptionV1.tar Slim-InceptionV1 && rm -r Slim-InceptionV1",
    ),
    "inception_v1_2016_08_28.tar.gz": ("py2", "python pretrain.py"),
    "facenet.tar": (
        "py3",
        f"python {DEMOS}/facenet/draw.py facenet/src && cp {DEMOS}/facenet/*.py facenet/src"
        " && tar cf facenet.tar facenet && rm -r facenet",
    ),
    "zhwiki-latest-pages-articles.xml.bz2": (
        "py3",
        f"python {DEMOS}/word2vec/make_wiki.py zhwiki-latest-pages-articles.xml.bz2",
    ),
}

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Done:
    """What a typed line did."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Node:
    """A container of the current release."""

    name: str

    def run(self, script: str, *, user: str = USER, seconds: float = 300) -> Done:
        """Runs a script in a login shell of a user."""
        line = ["docker", "exec", self.name, "su", "--login", user, "--command", script]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=seconds)
        return Done(done.returncode, done.stdout, done.stderr)

    def put(self, path: str, data: bytes) -> None:
        """Writes a file, as root."""
        script = f"mkdir -p $(dirname {path}) && cat > {path}"
        command = ["docker", "exec", "--interactive", self.name, "sh", "-c", script]
        subprocess.run(command, input=data, check=True, capture_output=True)

    def freeze(self, workspace: str) -> list[str]:
        """The packages of a virtualenv, with their versions."""
        return Shell(self, workspace).type("pip freeze").splitlines()


@dataclass
class Shell:
    """What a user types in a row: folder and virtualenv stay from line to line."""

    node: Node
    workspace: str = ""
    before: list[str] = field(default_factory=list)
    """Lines that changed folder or virtualenv."""

    def __post_init__(self) -> None:
        if self.workspace:
            self.before.append(f"source {SPEC.names()['workspaces'][self.workspace]}/bin/activate")

    def run(self, line: str) -> Done:
        done = self.node.run(" && ".join([*self.before, line]))
        if line.startswith(("cd ", "source ")) and done.code == 0:
            self.before.append(line)
        return done

    def type(self, line: str) -> str:
        """Output of a line that must succeed."""
        done = self.run(line)
        assert done.code == 0, f"{line}: {done.out[-2000:]}{done.err[-2000:]}"
        return done.out

    def download(self, address: str) -> None:
        """Makes what stands for a download where it would lie."""
        workspace, script = DOWNLOADS[address.rpartition("/")[2]]
        folder = [line for line in self.before if line.startswith("cd ")]
        Shell(self.node, workspace, folder).type(script)

    def follow(self, block: Block) -> dict[str, str]:
        """Types a block of the guide, but for what serves; each line's output."""
        said: dict[str, str] = {}
        for entry in block.entries:
            line = GUIDE.corrected(entry)
            if line.startswith("wget "):
                self.download(line.split()[-1])
            elif not entry.command.serves:
                said[line] = self.type(line)
        return said


def named(name: str) -> Block:
    """The block of the guide, or the promise, of that name."""
    return next(block for block in GUIDE.every if block.name == name)


PACKAGES = {
    promise: [name for entry in named(promise).entries for name in GUIDE.line(entry).split()[2:]]
    for promise in ("demo-packages", "facenet-package")
}
"""What each promise has installed: pip install NAME…"""


def number(text: str, label: str) -> float:
    """The only number that ``text`` prints after ``label:``."""
    (found,) = re.findall(rf"^{label}: (\d\.\d{{4}})$", text, re.MULTILINE)
    return float(found)


def packed() -> bytes:
    """A tar of tests/demos, which every user of a node may read."""

    def readable(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.uid = entry.gid = 0
        entry.mode = 0o755 if entry.isdir() else 0o644
        return None if "__pycache__" in entry.name else entry

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(CHECKOUT / "tests" / "demos", Path(DEMOS).name, filter=readable)
    return stream.getvalue()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    # The machine's network: an index or a mirror that the machine reaches may be on no other.
    command = ["docker", "run", "--detach", "--init", "--name", name, "--network=host", "--tmpfs=/tmp:exec,mode=1777"]
    subprocess.run([*command, f"deeplearning:{SPEC.release}-cpu", "sleep", "infinity"], check=True, capture_output=True)
    try:
        found = Node(name)
        found.put(f"{DEMOS}.tar", packed())
        assert found.run(f"tar xf {DEMOS}.tar -C {Path(DEMOS).parent}", user="root").code == 0
        yield found
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def indexed(node: Node) -> Node:
    """The node, whose pip is told of this machine's index as its administrator would: in /etc/pip.conf."""
    try:
        Index().files("gensim")
    except KilnError as error:
        pytest.skip(f"not run: {error}")
    settings = pip_settings()
    main, *more = index_urls()
    lines = {"index-url": main, "extra-index-url": " ".join(more)}
    lines["trusted-host"] = settings.get("trusted-host", "")
    lines["proxy"] = settings.get("proxy") or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or ""
    certificates = new_session().verify
    if isinstance(certificates, str):
        lines["cert"] = "/etc/pip-certificates.pem"
        node.put(lines["cert"], Path(certificates).read_bytes())
    text = "".join(f"{name} = {value}\n" for name, value in lines.items() if value)
    node.put("/etc/pip.conf", f"[global]\n{text}".encode())
    return node


@dataclass(frozen=True)
class Installed:
    """What a line of the guide that installs packages changed in the virtualenv."""

    before: list[str]
    after: list[str]


@pytest.fixture(scope="module")
def installed(indexed: Node) -> dict[str, Installed]:
    """What the guide's promises of packages did, by promise."""
    changes = {}
    for promise in PACKAGES:
        block = named(promise)
        (workspace,) = block.row.workspaces
        before = indexed.freeze(workspace)
        Shell(indexed, workspace).follow(block)
        changes[promise] = Installed(before, indexed.freeze(workspace))
    return changes


# What the demos need


@pytest.mark.parametrize("promise", PACKAGES)
def test_packages_are_added_and_none_is_replaced(installed: dict[str, Installed], promise: str) -> None:
    change = installed[promise]
    names = {line.partition("==")[0] for line in change.after} - {line.partition("==")[0] for line in change.before}
    assert PACKAGES[promise]
    assert set(PACKAGES[promise]) <= names
    assert [line for line in change.before if line not in change.after] == []
    assert any(line.startswith("tensorflow==") for line in change.before)


def test_packages_fit_and_load(installed: dict[str, Installed], node: Node) -> None:
    shell = Shell(node, "py3")
    assert shell.type("pip check") == "No broken requirements found.\n"
    # cv2.face: what only opencv-contrib-python has.
    assert shell.type("python -c 'import gensim, jieba, cv2; cv2.face; print(1)'") == "1\n"


def test_versions_of_the_demos_are_held(installed: dict[str, Installed], node: Node) -> None:
    shell = Shell(node, "py3")
    before = node.freeze("py3")
    names = [name for names in PACKAGES.values() for name in names]
    shell.type(f"pip install --upgrade {' '.join(names)}")
    assert node.freeze("py3") == before
    assert {f"{name}=={version}" for name, version in NODE.demos.items()} <= set(before)
    # Pip of that age does not always say that a constraint forbids it, but keeps to it.
    shell.run("pip install gensim==3.8.3 opencv-contrib-python==4.1.0.25")
    assert node.freeze("py3") == before


# Word2Vec

PAIRS = {"医生": "护士", "苹果": "香蕉", "火车": "汽车", "国王": "皇帝", "钢琴": "吉他"}
"""Words of tests/demos/word2vec/make_wiki.py that stand in the same places, in simplified characters."""


@pytest.fixture(scope="module")
def opencc(node: Node) -> None:
    """OpenCC on the node, from the distribution, by this machine's way to its archive."""
    mirrors = host_mirrors()
    sources = node.run("cat /etc/apt/sources.list").out.splitlines()
    lines = [re.sub(r"https?://\S+(?= (\S+))", lambda uri: mirrors.get(uri[1], uri[0]), line) for line in sources]
    node.put("/etc/apt/sources.list", ("\n".join(lines) + "\n").encode())
    settings = "".join(f'{name} "{value}";\n' for name, value in carried_settings())
    node.put("/etc/apt/apt.conf.d/99machine", settings.encode())
    done = node.run("sudo apt-get update --error-on=any")
    if done.code:
        pytest.skip(f"not run: the node's apt reaches no archive ({done.err.strip().splitlines()[-1]})")
    done = node.run("sudo apt-get install --yes opencc")
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def word2vec(opencc: None, installed: dict[str, Installed], node: Node) -> Shell:
    """The folder in which the guide's lines have trained Word2Vec."""
    shell = Shell(node, "py3")
    # The guide names no folder for what it unpacks there.
    shell.type(f"cp -r {DEMOS}/word2vec gensim")
    shell.type("cd gensim")
    said = shell.follow(named("word2vec"))
    # Neither the talk page nor the stub.
    assert said["python process_wiki.py zhwiki-latest-pages-articles.xml.bz2 wiki.zht.text"] == "150 articles\n"
    return shell


def nearest(shell: Shell) -> dict[str, list[tuple[str, float]]]:
    """The words that Word2Vec finds nearest to each word of a pair, with their similarity."""
    found: dict[str, list[tuple[str, float]]] = {word: [] for word in PAIRS}
    for line in shell.type(f"python similar.py {' '.join(PAIRS)}").splitlines():
        word, near, similarity = line.split()
        found[word].append((near, float(similarity)))
    return found


def test_the_corpus_is_simplified_and_cut_into_words(word2vec: Shell) -> None:
    traditional, simplified = (word2vec.type(f"cat wiki.{name}.text") for name in ("zht", "zhs"))
    assert ("醫生" in traditional, "医生" in traditional) == (True, False)
    assert ("醫生" in simplified, "医生" in simplified) == (False, True)
    assert "wikipedia" in simplified
    words = word2vec.type("cat wiki_seg.txt").split()
    assert set(PAIRS) | set(PAIRS.values()) <= set(words)
    assert [word for word in words if re.search(r"[0-9A-Za-z]", word)] == []


def test_word2vec_finds_words_of_a_kind(word2vec: Shell) -> None:
    word2vec.type("python train.py")
    found = nearest(word2vec)
    assert {word: near[0][0] for word, near in found.items()} == PAIRS
    for (_, likeness), (_, unlike), *_ in found.values():
        assert likeness > 0.9
        assert unlike < 0.7


def test_word2vec_finds_nothing_in_shuffled_words(word2vec: Shell) -> None:
    word2vec.type("python train.py --shuffled")
    assert sum(near[0][0] == PAIRS[word] for word, near in nearest(word2vec).items()) <= 1


# Image classification

INCEPTION = ("inception-download", "inception-workspace", "inception-train", "inception-test")
PRETRAINED = ("inception-weights", "inception-pretrained")


@dataclass(frozen=True)
class Followed:
    """A shell in which blocks of the guide were typed, and what each line printed."""

    shell: Shell
    said: dict[str, str]


@pytest.fixture(scope="module")
def inception(node: Node) -> Followed:
    shell = Shell(node)
    said: dict[str, str] = {}
    for name in (*INCEPTION, *PRETRAINED):
        said |= shell.follow(named(name))
    return Followed(shell, said)


def test_inceptions_flow_runs_through(node: Node) -> None:
    """In two steps, which teach it nothing: the long tests look at what it learns."""
    shell = Shell(node, "py2")
    shell.type(f"cp -r {DEMOS}/inception quick")
    shell.type("cd quick")
    shell.type("python draw.py . && sed -i 's/^STEPS = .*/STEPS = 2/' train.py")
    assert "30 pictures of dog and cat" in shell.type("python train.py")
    answer = shell.type("python test.py picture/dog/dog1.jpg")
    assert re.fullmatch(r"picture/dog/dog1\.jpg: (dog|cat) (0\.\d+|1\.0+)\n", answer), answer


@pytest.mark.long
def test_inception_is_trained_on_thirty_pictures(inception: Followed) -> None:
    assert "30 pictures of dog and cat" in inception.said["python train.py"]
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", inception.said["python train.py"])]
    assert losses[-1] < losses[0]
    assert number(inception.shell.type("python test.py picture"), "accuracy") >= 0.9


@pytest.mark.long
@pytest.mark.parametrize("animal", ["dog", "cat"])
def test_inception_tells_dogs_from_cats(inception: Followed, animal: str) -> None:
    path = f"picture/{animal}/{animal}1.jpg"
    (answer,) = inception.said[f"python test.py {path}"].splitlines()
    assert re.fullmatch(rf"{path}: {animal} (0\.[5-9]\d+|1\.0+)", answer), answer


@pytest.mark.long
def test_inception_knows_pictures_that_it_has_not_seen(inception: Followed) -> None:
    assert number(inception.shell.type("python test.py unseen"), "accuracy") >= 0.85


@pytest.mark.long
@pytest.mark.parametrize(("animal", "name"), [("dog", "Labrador retriever"), ("cat", "tiger cat")])
def test_weights_of_googles_form_are_restored(inception: Followed, animal: str, name: str) -> None:
    first, *_ = inception.said[f"python test_pretrained.py picture/{animal}/{animal}2.jpg"].splitlines()
    assert re.fullmatch(rf"Probability (0\.[5-9]\d+|1\.0+) => \[{name}\]", first), first


@pytest.mark.long
def test_inception_learns_nothing_from_mixed_pictures(node: Node) -> None:
    shell = Shell(node, "py2")
    shell.type(f"cp -r {DEMOS}/inception mixed")
    shell.type("cd mixed")
    shell.type("python draw.py . --mixed")
    shell.type("python train.py")
    assert 0.2 <= number(shell.type("python test.py unseen"), "accuracy") <= 0.7


# Faces

MODEL = "20180408-102900"
"""The folder of the weights, as the guide has it typed."""

PICTURES = [f"{person}{number}.jpg" for person in "abc" for number in (1, 2)]
"""Of three people, as the guide has them typed."""


@pytest.fixture(scope="module")
def facenet(installed: dict[str, Installed], node: Node) -> Shell:
    """The folder of FaceNet, its net trained."""
    shell = Shell(node)
    shell.follow(named("facenet"))
    said = shell.type(f"python train.py {MODEL}")
    assert int(re.findall(r"^(\d+) faces of 32 people", said)[0]) >= 0.9 * 32 * 8
    return shell


@pytest.mark.long
def test_pictures_of_one_person_are_nearer(facenet: Shell) -> None:
    lines = facenet.type(f"python compare.py {MODEL} {' '.join(PICTURES)}").splitlines()
    distances = [(one[0] == other[0], float(distance)) for one, other, distance in map(str.split, lines)]
    same = [distance for alike, distance in distances if alike]
    assert (len(same), len(distances)) == (3, 15)
    assert max(same) < min(distance for alike, distance in distances if not alike)


@pytest.mark.long
def test_strangers_are_told_apart_by_what_was_learnt(facenet: Shell) -> None:
    learnt = number(facenet.type(f"python judge.py {MODEL}"), "nearer")
    assert learnt >= 0.95
    assert number(facenet.type("python judge.py"), "nearer") <= learnt - 0.1


@pytest.mark.long
def test_a_picture_without_a_face_is_told(facenet: Shell) -> None:
    facenet.type('python -c \'import cv2, numpy; cv2.imwrite("wall.jpg", numpy.full((200, 160), 128, "uint8"))\'')
    done = facenet.run(f"python compare.py {MODEL} a1.jpg wall.jpg")
    assert (done.code, done.out, done.err) == (1, "", "compare.py: wall.jpg shows no face\n")
