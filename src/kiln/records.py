"""What was built, from which inputs, and how long it took: one JSON file per stage digest in the store."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kiln.store import Store

if TYPE_CHECKING:
    from kiln.plan import Stage


@dataclass(frozen=True)
class Record:
    """One finished stage."""

    digest: str
    name: str
    images: tuple[str, ...]
    inputs: dict[str, str]
    seconds: float
    finished: str
    """UTC, ISO 8601."""


def write_record(store: Store, stage: Stage, seconds: float) -> None:
    """Notes that ``stage`` was built in ``seconds``; replaces an earlier note of the same digest."""
    folder = store.root / "records"
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "digest": stage.digest,
        "name": stage.name,
        "images": list(stage.images),
        "inputs": stage.inputs,
        "seconds": round(seconds, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    temporary = folder / f".{stage.digest}.{os.getpid()}"
    temporary.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / f"{stage.digest}.json")


def read_records(store: Store) -> dict[str, Record]:
    """Every readable record by digest; a damaged one is passed over, since it only informs."""
    records: dict[str, Record] = {}
    for path in sorted((store.root / "records").glob("*.json")):
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            record = Record(**{**data, "images": tuple(data["images"])})
        except (OSError, ValueError, TypeError, KeyError):
            continue
        records[record.digest] = record
    return records


def latest(records: dict[str, Record], name: str, images: tuple[str, ...]) -> Record | None:
    """The newest record of a stage's name, one that served the same images before any other."""
    same = [record for record in records.values() if record.name == name]
    return max(same, key=lambda record: (bool(set(record.images) & set(images)), record.finished), default=None)
