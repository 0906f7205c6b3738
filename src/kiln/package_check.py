"""Checks a package, ours or not, against the platform's specification."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from kiln import package_schema as schema
from kiln.package_corners import Choices, rows
from kiln.package_finding import Finding, shown, words
from kiln.package_form import form_faults, form_texts
from kiln.package_json import Document, JsonError, Path, dotted, parse
from kiln.package_template import Template, TemplateError
from kiln.package_topology import Command, commands, topology_faults, topology_texts

FORM, TOPOLOGY = "config.json", "cluster.json.mustache"
LANGUAGES = ("en", "zh-cn")
# Findings of these kinds leave a document in the shape that the further rules rely on.
_HARMLESS = {
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "multipleOf",
    "minItems",
    "maxItems",
    "maxProperties",
    "minLength",
}
_HARMLESS |= {"pattern", "additionalProperties"}


class Checker:
    """Goes through one package's files and keeps what it finds."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.findings: dict[tuple[str, str, str], Finding] = {}
        self.commands: dict[Command, int] = {}
        """The programs that the package wants on a node, each with its line in the topology."""

    def check(self) -> list[Finding]:
        """Every finding, in the order of files and lines."""
        form = self._read(FORM)
        wanted: dict[str, str] = {}
        if form is not None:
            if self._has_shape(FORM, form, _validator("FORM")):
                self._find_all(FORM, form, form_faults(form.data))
            wanted |= form_texts(form.data)
        for topology in self._check_topology(form.data if form is not None else {}):
            wanted |= topology_texts(topology.data)
        self._check_locales(wanted)
        return sorted(self.findings.values())

    def find(self, file: str, line: int, path: Path, said: str) -> None:
        """Keeps a finding; the same words about the same place only once."""
        place = dotted(path)
        self.findings.setdefault((file, place, said), Finding(file, line, place, said))

    def _find_all(self, file: str, document: Document, faults: Iterable[tuple[Path, str]]) -> None:
        for path, said in faults:
            self.find(file, document.line(path), path, said)

    def _text(self, name: str) -> str | None:
        content = self.files.get(name)
        if content is None:
            self.find(name, 1, (), "the package lacks this file")
            return None
        if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            self.find(name, 1, (), "it begins with a byte-order mark, which the platform refuses")
            content = content.removeprefix(codecs.BOM_UTF8)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self.find(name, line, (), f"byte {error.start} is not UTF-8")
            return None

    def _read(self, name: str) -> Document | None:
        text = self._text(name)
        return None if text is None else self._parse(name, text)

    def _parse(
        self, name: str, text: str, when: str = "", marks: Sequence[tuple[int, int]] | None = None
    ) -> Document | None:
        try:
            document = parse(text, marks)
        except JsonError as error:
            self.find(name, error.line, (), f"it is not JSON: {error.said}{when}")
            return None
        for repeated in document.repeated:
            said = f"the key stands twice, first in line {repeated.first}"
            self.find(name, repeated.line, repeated.path, said)
        return document

    def _has_shape(self, name: str, document: Document, validator: Draft202012Validator) -> bool:
        """Keeps what the schema says, and tells whether the further rules can be asked."""
        sound = True
        for error in validator.iter_errors(document.data):
            sound &= error.validator in _HARMLESS or (
                error.validator == "enum" and isinstance(error.instance, str | int)
            )
            path = tuple(error.absolute_path)
            self._find_all(name, document, (((*path, *below), said) for below, said in words(error)))
        return sound

    def _check_topology(self, form: Any) -> list[Document]:
        """What the template becomes for the corners of the form, as far as it is JSON."""
        made: list[Document] = []
        text = self._text(TOPOLOGY)
        if text is None:
            return made
        plain: Choices = {}
        try:
            template = Template(text)
            for number, choices in enumerate(rows(form)):
                plain = plain if number else choices
                rendered, marks = template.render_with_marks(choices)
                document = self._parse(TOPOLOGY, rendered, _difference(plain, choices), marks)
                if document is None:
                    # One broken corner is enough: the others only repeat it.
                    break
                made.append(document)
                if self._has_shape(TOPOLOGY, document, _validator("TOPOLOGY")):
                    self._find_all(TOPOLOGY, document, topology_faults(document.data))
                    for command in commands(document.data):
                        self.commands.setdefault(command, document.line(command.path))
        except TemplateError as error:
            self.find(TOPOLOGY, error.line, (), str(error))
        return made

    def _check_locales(self, wanted: dict[str, str]) -> None:
        """Whether each of ``wanted``, text to what it is, has words in every language."""
        locales: dict[str, Document] = {}
        for language in LANGUAGES:
            name = f"locale/{language}.json"
            document = self._read(name)
            if document is not None:
                self._has_shape(name, document, _validator("LOCALE"))
                if isinstance(document.data, dict):
                    locales[name] = document
        for name, document in locales.items():
            for key, why in wanted.items():
                if key not in document.data:
                    self.find(name, 1, (), f"no translation of {shown(key)}, {why}")
            for key in document.data:
                if re.match("err_code", key) and not re.fullmatch(r"err_code[1-9][0-9]{0,2}", key):
                    self.find(name, document.line((key,)), (key,), "the number of an exit code follows err_code")
                for other, beside in locales.items():
                    if key not in beside.data and key not in wanted:
                        self.find(other, 1, (), f"no translation of {shown(key)}, which {name} has")


def check(files: dict[str, bytes]) -> list[Finding]:
    """What is wrong with a package's files."""
    return Checker(files).check()


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(getattr(schema, name))


def _difference(plain: Choices, choices: Choices) -> str:
    """How a row differs from the form's defaults, for the end of a sentence."""
    other = [f"{name} = {shown(value)}" for name, value in choices.items() if plain.get(name) != value]
    return f" when {' and '.join(other[:2])}" if other else ""
