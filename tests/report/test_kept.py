"""Kept tokens in report.json and on the page: maps over patches, on images where the recipe asks for some."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from compressor.errors import VerificationError
from compressor.report._kept import kept_rows
from compressor.report.html import html_report
from compressor.report.schema import check_report
from tests.report.samples import encoder
from tests.report.test_html import Page

PICTURE = "data:image/jpeg;base64,/9j//4AA"
MASK = np.array([[1, 0, 0], [1, 1, 0]], np.bool_)


def report(**changes: Any) -> dict[str, Any]:
    """Return a report on images of 2 x 3 patches, two of which go behind block 4, and one more behind block 7."""
    second = MASK & np.array([[0, 1, 1], [1, 1, 1]], np.bool_)
    kept = {
        "grid": [2, 3],
        "blocks": [4, 7],
        "samples": 32,
        "shares": [bytes([255, 0, 51, 255, 255, 0]).hex(), bytes([0, 0, 0, 255, 255, 0]).hex()],
        "images": [{"picture": PICTURE, "kept": [np.packbits(mask).tobytes().hex() for mask in (MASK, second)]}],
    }
    return {**encoder(), "kept_tokens": {**kept, **changes}}


def test_maps_have_a_rectangle_for_each_run_of_a_row() -> None:
    average, image = kept_rows(check_report(report()))
    assert [each.label for each in average.maps] == ["block 4: 53 %", "block 7: 33 %"]
    assert average.maps[0].tones == [(1 / 6, "M2 0h1v1h-1z"), (1.0, "M0 0h1v1h-1zM0 1h2v1h-2z")]
    assert [each.label for each in image.maps] == ["block 4: 3 of 6", "block 7: 2 of 6"]
    assert image.maps[0].tones == [(1.0, "M1 0h2v1h-2zM2 1h1v1h-1z")], "what is gone"


def test_the_page_holds_each_image_once_and_asks_nobody() -> None:
    source = html_report(report())
    page = Page(source)
    assert page.problems == [] and page.open == []
    assert [a["href"] for tag, a in page.tags if tag == "image"] == [PICTURE]
    assert [a["href"] for tag, a in page.tags if tag == "use"] == ["#image1", "#image1"]
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "link", "iframe")]
    assert not re.search(r"https?:|url\(", source)
    assert "img-src data:;" in source
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.find("svg"))


def test_without_images_shares_alone_are_drawn() -> None:
    page = Page(html_report(report(images=[])))
    assert "On average over 32 images" in page.text and not page.find("image") and not page.find("use")
    assert "Kept tokens" not in Page(html_report(encoder())).text


@pytest.mark.parametrize(
    "changes",
    [
        {"shares": ["00" * 6]},
        {"shares": ["00" * 5, "00" * 6]},
        {"shares": ["zz" * 6, "00" * 6]},
        {"grid": [0, 3]},
        {"images": [{"picture": "https://example.org/a.png", "kept": ["00", "00"]}]},
        {"images": [{"picture": 'data:image/png;base64,"><script>', "kept": ["00", "00"]}]},
        {"images": [{"picture": PICTURE, "kept": ["00"]}]},
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match="kept_tokens"):
        check_report(report(**changes))
