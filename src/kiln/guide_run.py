"""Types the user guide into a node of an image, and tells what became of each command."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import requests

from kiln.engine import CHANNEL_LABEL, Engine
from kiln.errors import KilnError
from kiln.guide import Block, Entry, Guide
from kiln.guide_object_store import filled
from kiln.guide_terminal import Answer, Shell
from kiln.image_spec import ImageSpec
from kiln.matrix import Matrix
from kiln.package import Packages
from kiln.platform import Cluster, Node, cluster, docker, remove_volumes
from kiln.project import Project
from kiln.release_ids import ReleaseIds
from kiln.trial import Topology
from kiln.verify import Check, Report

REST_S = 30
"""How long the others of a group may go on after one of them failed."""

ANSWER_S = 10
"""A server that has told its address answers there at once."""

BUCKET = "mydata"
"""Source: the user guide's own example."""

DOUBLES = {"object-store": "a double stands for the object store"}
"""What is told of a command that runs on what was prepared for it."""

_OF_DEVICE = {"gpu": "GPU", "cpu": "CPU"}


def image_of(spec: ImageSpec) -> str:
    """The image's reference in the engine."""
    return f"deeplearning:{spec.release}-{spec.image}"


def baked_on(reference: str, channel: str = "") -> str:
    """The channel that an image in the engine says it was baked on; raises KilnError when it is not ``channel``."""
    engine = Engine()
    engine.check()
    labels = engine.image_labels(reference)
    if labels is None:
        raise KilnError(f"{reference} is not baked", fix="run make images")
    found = labels.get(CHANNEL_LABEL, "unknown")
    if channel not in ("", found):
        raise KilnError(f"{reference} was baked on channel {found}, not {channel}", fix="leave out --channel")
    return found


def choose(guide: Guide, only: str | None) -> list[list[Block]]:
    """The blocks, those that run together in one list; ``only``: the name of a block, or of a command in it."""
    groups: dict[str, list[Block]] = {}
    for block in guide.every:
        groups.setdefault(block.group, []).append(block)
    chosen = [
        group
        for group in groups.values()
        if only is None or only in {name for block in group for name in (block.name, *(e.name for e in block.entries))}
    ]
    if not chosen:
        raise KilnError(f"the guide has no command {only}", where="images/guide.yml", fix="name a block of it")
    return chosen


@dataclass
class Runner:
    """One run through the guide on one image."""

    project: Project
    guide: Guide
    quick: bool = False
    told: Callable[[Check], None] = lambda check: None
    doing: Callable[[str], None] = lambda name: None
    before: Callable[[Cluster], None] = lambda made: None
    """Called with the cluster before anything is typed: where tests break it."""
    checks: list[Check] = field(default_factory=list)

    def run(self, groups: Sequence[Sequence[Block]]) -> Report:
        """Types them; nothing is left in the engine, whatever happened."""
        image = image_of(self.guide.spec)
        baked_on(image, self.guide.spec.channel.name)
        topology = self._topology()
        name = ""
        try:
            with cluster(topology.services, **topology.settings) as made:
                name = made.name
                self.doing("the nodes boot")
                blocks = [block for group in groups for block in group]
                self._boot(made, 2 if any(block.row.node == 2 and self._runs(block) for block in blocks) else 1)
                self.before(made)
                for group in groups:
                    for number in range(len(group[0].row.workspaces) or 1):
                        self._together(made, group, number)
        finally:
            if name:
                remove_volumes(name)
        return Report(image, f"{self.guide.spec.release}/{self.guide.spec.image}", tuple(self.checks))

    def _topology(self) -> Topology:
        """What the package of this image asks of the platform."""
        spec = self.guide.spec
        _, row = Matrix(self.project, spec.channel.name).release(spec.release)
        ids = self.project.images / "release-ids.example.yml"
        packages = Packages(self.project, ReleaseIds(ids, self.project.root, row.release, row.upgrades_from))
        for name, package in packages.appcenter.packages.items():
            if package.image == spec.image:
                return Topology(packages.make(name))
        raise KilnError(f"no package is for image {spec.image}", where="images/appcenter.yml", fix="add one")

    def _boot(self, made: Cluster, count: int) -> None:
        for _ in range(count):
            made.boot(made.add(image_of(self.guide.spec)))
        made.publish()
        for node in made.nodes:
            made.await_configuration(node)
        for service in made.order("init"):
            for node in made.nodes:
                made.run(node, service)

    def why_not(self, entry: Entry) -> str:
        """Why the command is not typed; empty when it is."""
        command = entry.command
        if command.images not in ("all", self.guide.spec.device):
            return f"is for {_OF_DEVICE[command.images]} images only"
        if command.not_run:
            return command.not_run
        return "takes long: runs without --quick" if self.quick and command.slow else ""

    def _runs(self, block: Block) -> bool:
        return not self.why_not(block.entries[-1])

    def _together(self, made: Cluster, group: Sequence[Block], number: int) -> None:
        """Types blocks that end at the same time: each one's last line is typed when all others are done."""
        with ExitStack() as stack:
            sessions = []
            for block in group:
                node = made.nodes[min(block.row.node, len(made.nodes)) - 1]
                sessions.append(stack.enter_context(self._session(made, node, block, number)))
            for session in sessions:
                for entry in session.block.entries[:-1]:
                    self._tell(session, entry, session.begin(entry) and session.finish(entry))
            failed = next((session.failed for session in sessions if session.failed), "")
            for session in sessions:
                session.failed = session.failed or failed
            begun = [(session, session.begin(session.block.entries[-1])) for session in sessions]
            for session, typed in begun:
                entry = session.block.entries[-1]
                self._tell(session, entry, typed and session.finish(entry, REST_S if failed else None))
                failed = failed or session.failed

    @contextmanager
    def _session(self, made: Cluster, node: Node, block: Block, number: int) -> Iterator[_Session]:
        workspace = block.row.workspaces[number] if block.row.workspaces else ""
        session = _Session(self, made, node, block, workspace)
        try:
            yield session
        finally:
            session.close()

    def _tell(self, session: _Session, entry: Entry, finished: bool) -> None:
        check = session.verdict(entry, finished)
        self.checks.append(check)
        self.told(check)


class _Session:
    """One login shell and the block that is typed into it."""

    def __init__(self, runner: Runner, made: Cluster, node: Node, block: Block, workspace: str) -> None:
        self.runner, self.made, self.node, self.block, self.workspace = runner, made, node, block, workspace
        self.failed = ""
        """The command that failed, by name: nothing is typed after it."""
        self._shell: Shell | None = None
        self._reason = ""
        self._begun = 0.0
        self._there: set[str] = set()
        """What its patterns of paths led to before the command."""
        self._doubles = ExitStack()
        guide = runner.guide
        versions = zip(guide.spec.row.python, guide.spec.pythons, strict=True)
        self._names = {
            "addresses": [one.ip for one in made.nodes] + [""] * (2 - len(made.nodes)),
            "workspace": next(
                (
                    {"name": workspace, "path": guide.names["workspaces"][workspace], "version": version}
                    for version, python in versions
                    if python.workspace == workspace
                ),
                {},
            ),
        }

    def name(self, entry: Entry) -> str:
        return entry.name + (f" [{self.workspace}]" if self.workspace else "")

    def _text(self, value: str, entry: Entry) -> str:
        return self.runner.guide.text(value, entry.where, **self._names)

    def begin(self, entry: Entry) -> bool:
        """Types the command, unless there is a reason not to; whether it was typed."""
        self._begun = time.monotonic()
        self.runner.doing(self.name(entry))
        self._reason = self.runner.why_not(entry)
        out = self._shell is not None and not self._shell.in_
        if not self._reason and self.failed and (out or not entry.command.regardless):
            self._reason = f"{self.failed} failed"
        if self._reason:
            return False
        if self._shell is None and (words := self._open()):
            self._reason, self.failed = words, self.name(entry)
            return True
        guide = self.runner.guide
        line = guide.corrected(entry)
        for placeholder, value in entry.command.placeholders.items():
            line = line.replace(placeholder, self._text(value, entry))
        assert self._shell is not None
        if entry.command.prepared:
            script = self._doubles.enter_context(filled(self.made.gateway, BUCKET))
            try:
                self.made.execute(self.node, f"HOME={guide.names['node']['user']['home']}; {script}")
            except KilnError as error:
                self._reason = str(error)
                return True
        self._there = {
            path for pattern in entry.command.makes if "*" in pattern for path in self._found(pattern, entry)
        }
        self._shell.begin(line)
        return True

    def _open(self) -> str:
        """Logs in, activates the workspace, enters the folder; what went wrong."""
        guide, row = self.runner.guide, self.block.row
        user = guide.names["node"]["user"]
        if row.login == "ssh":
            options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "PreferredAuthentications=password")
            command = ["ssh", "-F", "/dev/null", "-p", str(guide.names["node"]["ports"]["ssh"])]
            command += [word for option in (*options, "NumberOfPasswordPrompts=1") for word in ("-o", option)]
            self._shell = Shell([*command, f"{user['name']}@{self.node.ip}"], user["password"])
        else:
            command = ["docker", "exec", "--interactive", "--tty", self.node.container, "su", "-", user["name"]]
            self._shell = Shell(command)
        if not self._shell.in_:
            return f"login: {_last(self._shell.said)}"
        before = [f"source {guide.names['workspaces'][self.workspace]}/bin/activate"] if self.workspace else []
        before += [f"cd {guide.text(row.folder, self.block.where)}"] if row.folder else []
        for line in before:
            answer = self._shell.run(line, 20)
            if answer.code != 0:
                return f"{line}: {_last(answer.output)}"
        return ""

    def finish(self, entry: Entry, seconds: float | None = None) -> bool:
        """Waits for the command's end, and says whether all happened that must."""
        if not self._reason:
            self._reason = self._judge(entry, min(seconds or entry.command.seconds, entry.command.seconds))
        if self._reason:
            self.failed = self.name(entry)
        return not self._reason

    def _judge(self, entry: Entry, seconds: float) -> str:
        """What is wrong with what the command did; empty when nothing is."""
        command, shell = entry.command, self._shell
        assert shell is not None
        if command.serves or command.interrupted:
            return self._interrupted(entry, shell, seconds) or self._made(entry)
        answer = shell.end(seconds)
        if answer.code is None:
            shell.interrupt()
            return f"did not end within {seconds:.0f} s: {_last(answer.output)}"
        return self._compare(entry, answer)

    def _compare(self, entry: Entry, answer: Answer) -> str:
        command = entry.command
        if answer.code != command.code:
            return f"exit code {answer.code}: {_last(answer.output)}"
        if command.output and not re.search(self._text(command.output, entry), answer.output):
            return f"did not print {self._text(command.output, entry)!r}: {_last(answer.output)}"
        if command.prints and self._text(command.prints, entry) not in answer.output.splitlines():
            return f"did not print {self._text(command.prints, entry)!r}: {_last(answer.output)}"
        if command.prompt and not re.search(command.prompt, answer.prompt):
            return f"the prompt is {answer.prompt!r}, not {command.prompt!r}"
        return self._made(entry)

    def _made(self, entry: Entry) -> str:
        for pattern in entry.command.makes:
            found = self._found(pattern, entry)
            if not found - self._there:
                return f"{self._text(pattern, entry)} is not {'new' if found else 'there'}"
        return ""

    def _found(self, pattern: str, entry: Entry) -> set[str]:
        user = self.runner.guide.names["node"]["user"]["name"]
        script = ["bash", "-c", 'compgen -G "$1"', "-", self._text(pattern, entry)]
        return set(docker("exec", f"--user={user}", self.node.container, *script, check=False).splitlines())

    def _interrupted(self, entry: Entry, shell: Shell, seconds: float) -> str:
        """Waits for what the command prints and for the answer of what it serves, then ends it with Ctrl-C."""
        command = entry.command
        found = shell.await_output(re.compile(self._text(command.output, entry)), seconds)
        words = ""
        if found is None:
            words = f"did not print {self._text(command.output, entry)!r}: {_last(shell.output())}"
        elif command.serves:
            address = f"http://{self.node.ip}:{self._text(str(command.serves.port), entry)}"
            words = _answers(address + command.serves.path.format(**found.groupdict()), command.serves.contains)
        back = shell.interrupt()
        return words or ("" if back else "does not end on Ctrl-C")

    def verdict(self, entry: Entry, finished: bool) -> Check:
        """What is told of the command."""
        command, guide = entry.command, self.runner.guide
        seconds = time.monotonic() - self._begun
        name = f"{self.name(entry)}: {guide.corrected(entry)}"
        if not finished:
            failed = self.failed == self.name(entry)
            return Check(name, "failed" if failed else "not run", self._reason, seconds if failed else 0.0)
        slip = guide.line(entry) != guide.corrected(entry)
        reasons = [f"the guide has the slip {guide.line(entry)}"] if slip else []
        reasons += [f"{old} is {self._text(new, entry)} here" for old, new in command.placeholders.items()]
        reasons += [DOUBLES[command.prepared]] if command.prepared else []
        reasons += [
            f"{part}: {guide.spec.substitutions[part]}"
            for part in command.component
            if part in guide.spec.substitutions
        ]
        return Check(name, "substituted" if reasons else "passed", "; ".join(reasons), seconds)

    def close(self) -> None:
        """Logs out; what still runs there is ended, since a container's terminal does not do it."""
        self._doubles.close()
        if self._shell is None:
            return
        if self._shell.in_ and self._shell.run("", 1).code is None and not self._shell.interrupt():
            user = self.runner.guide.names["node"]["user"]["name"]
            docker("exec", self.node.container, "pkill", "-KILL", "-u", user, check=False)
        self._shell.close()


def _last(output: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing was printed"


def _answers(address: str, contains: str) -> str:
    """What is wrong with the answer at an address; waits for a right one."""
    ends = time.monotonic() + ANSWER_S
    session = requests.Session()
    session.trust_env = False  # a node is reached without a proxy
    while True:
        try:
            answer = session.get(address, timeout=10)
            if answer.ok and contains in answer.text:
                return ""
            words = f"{answer.status_code}: {_last(answer.text)}"
        except requests.RequestException as error:
            words = f"{type(error).__name__}"
        if time.monotonic() > ends or words[:1] == "4":
            return f"{address.partition('?')[0]} does not answer with {contains!r} ({words})"
        time.sleep(0.2)
