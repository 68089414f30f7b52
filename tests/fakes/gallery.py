"""Filters with images of one colour, as a report shows them."""

from __future__ import annotations

import io

from PIL import Image

from ipcnn_ray.report.gallery import Photograph, RunGallery, ShownFilter, StrongImage


def photograph(name: str, colour: str) -> Photograph:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(out, "JPEG")
    return Photograph(name, out.getvalue())


COWS = tuple(photograph(f"cow_{i}.jpg", colour) for i, colour in enumerate(("red", "green", "blue", "white", "grey")))


def strong_images(peak: tuple[float, float], count: int = 5) -> tuple[StrongImage, ...]:
    """Images with a head at (0.25, 0.5), and a tail that only the first one shows."""
    return tuple(
        StrongImage(
            photograph=COWS[i],
            activation=5.0 - i,
            peak=peak,
            landmarks=((0.25, 0.5), (0.75, 0.5) if i == 0 else None),
            distances=(0.125, 0.25 if i == 0 else None),
        )
        for i in range(count)
    )


def small_gallery() -> list[RunGallery]:
    """Two runs: one of three filters with images, in another order by each number; one without images."""
    narrow = (
        ShownFilter(0, "cow", None, -0.5, 0.125, 0.75, strong_images((0.5, 0.5))),
        ShownFilter(1, "cow", "head", 0.9, 0.0625, 0.5, strong_images((0.25, 0.75))),
        ShownFilter(2, "cow", "tail", 0.4, None, 0.25, strong_images((0.75, 0.75))),
    )
    plain = (ShownFilter(0, "cow", None, 0.1, 0.13), ShownFilter(1, "cow", "head", 0.8, 0.14))
    return [
        RunGallery("narrow", "narrow: L2 β10", "conv5", narrow, ("head", "tail"), total=3),
        RunGallery("plain", "plain", "conv5", plain, total=9, note="model.safetensors is missing <here>"),
    ]
