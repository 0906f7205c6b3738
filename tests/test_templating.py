"""Expressions in tables: native values, and one sentence for what cannot be evaluated."""

from __future__ import annotations

from typing import Any

import pytest

from kiln.errors import KilnError
from kiln.templating import render

NAMES: dict[str, Any] = {
    "version": "9.1",
    "node": {"ports": {"jupyter": 8888}, "path": "/opt"},
    "device": "cpu",
    "flags": ["avx", "fma"],
    "nothing": None,
}


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("plain", "plain"),
        ("", ""),
        (8888, 8888),
        (None, None),
        (True, True),
        ("{{ version }}", "9.1"),
        ("  {{ node.ports.jupyter }} ", 8888),
        ("{{ flags }}", ["avx", "fma"]),
        ("{{ nothing }}", None),
        ("{{ node }}", NAMES["node"]),
        ("{{ not node.ports }}", False),
        ("cuda-{{ version }}-{{ device }}", "cuda-9.1-cpu"),
        ("{{ version }}{{ device }}", "9.1cpu"),
        ("{{ version }} {{ device }}", "9.1 cpu"),
        ("port {{ node.ports.jupyter }}", "port 8888"),
        ("{{ 'mkl' if device == 'cpu' else 'open' }}", "mkl"),
        ("{{ [] if device == 'gpu' else ['atlas'] }}", ["atlas"]),
        ("{{ version\n   ~ '.85' }}", "9.1.85"),
        ("{{ '<&>' }}", "<&>"),
        (["{{ version }}", ["{{ flags }}"]], ["9.1", [["avx", "fma"]]]),
        ({"a": "{{ device }}", "{{ device }}": 1}, {"a": "cpu", "{{ device }}": 1}),
    ],
)
def test_values_are_native(value: Any, result: Any) -> None:
    rendered = render(value, NAMES, "table:1")
    assert rendered == result
    assert type(rendered) is type(result)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("{{ missing }}", "'missing' is undefined"),
        ("before {{ missing }}", "'missing' is undefined"),
        ("{{ node.missing }}", "has no attribute 'missing'"),
        ("{{ node.missing.deeper }}", "has no attribute 'missing'"),
        ("{{ [version, missing] }}", "'missing' is undefined"),
        ("{{ {'a': (1, missing)} }}", "'missing' is undefined"),
        ("{{ version + }}", "'{{ version + }}' cannot be evaluated"),
        ("{{   }}", "cannot be evaluated"),
        ("{{ version + 1 }}", "cannot be evaluated"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ [].pop() }}", "pop from empty list"),
        ("{{ flags.index('sse') }}", "is not in list"),
        ("{{ nothing.split() }}", "has no attribute 'split'"),
        (["fine", {"deep": "{{ missing }}"}], "'{{ missing }}' cannot be evaluated"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(value: Any, says: str) -> None:
    with pytest.raises(KilnError) as caught:
        render(value, NAMES, "images/stages.yml:7")
    assert says in caught.value.what
    assert str(caught.value).startswith("images/stages.yml:7: ")
    assert str(caught.value).endswith("; correct the expression")


def test_names_of_one_table_do_not_leak_into_another() -> None:
    assert render("{{ version }}", {"version": "8.0"}, "a") == "8.0"
    assert render("{{ version }}", {"version": "9.1"}, "b") == "9.1"
    with pytest.raises(KilnError):
        render("{{ version }}", {}, "c")
