"""How large the images are, what dominates, and what they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GB = 1000**3
MB = 1000**2


@dataclass(frozen=True)
class Layer:
    """One layer of an image: its content's digest, the stage that made it, bytes unpacked."""

    digest: str
    stage: str
    size: int


def total(layers: Sequence[Layer]) -> int:
    """Bytes of an image, unpacked."""
    return sum(layer.size for layer in layers)


def together(images: Mapping[str, Sequence[Layer]]) -> int:
    """Bytes on disk of all images, a shared layer counted once."""
    return sum({layer.digest: layer.size for layers in images.values() for layer in layers}.values())


def as_data(images: Mapping[str, Sequence[Layer]]) -> dict[str, object]:
    """The sizes as JSON, bytes throughout."""
    return {
        "images": {
            name: {"total": total(layers), "stages": {layer.stage: layer.size for layer in layers}}
            for name, layers in images.items()
        },
        "together": together(images),
        "ratio_to_largest": round(together(images) / max((total(layers) for layers in images.values()), default=1), 3),
    }


def as_text(images: Mapping[str, Sequence[Layer]]) -> str:
    """A table: stages down, images across, megabytes; then what all of them take together."""
    stages = list(dict.fromkeys(layer.stage for layers in images.values() for layer in layers))
    sizes = {name: {layer.stage: layer.size for layer in layers} for name, layers in images.items()}
    width = max(len(name) for name in ("stage", *stages))
    columns = {name: max(len(name), 8) for name in images}
    lines = ["  ".join(("stage".ljust(width), *(name.rjust(columns[name]) for name in images)))]
    for stage in sorted(stages, key=lambda stage: -max(size.get(stage, 0) for size in sizes.values())):
        cells = (
            (f"{sizes[name][stage] / MB:.1f} MB" if stage in sizes[name] else "").rjust(columns[name])
            for name in images
        )
        lines.append("  ".join((stage.ljust(width), *cells)))
    totals = (f"{total(layers) / GB:.2f} GB".rjust(columns[name]) for name, layers in images.items())
    lines.append("  ".join(("total".ljust(width), *totals)))
    largest = max((total(layers) for layers in images.values()), default=0)
    if largest:
        lines.append(
            f"on disk together {together(images) / GB:.2f} GB, {together(images) / largest:.2f} times the largest"
        )
    return "\n".join(lines)
