import json
import math

import numpy as np
import pytest

from omr_ray.evaluation.reward import Share, calibrated, judge, write
from omr_ray.types import UserError


def row(name, chosen, rejected, source="a", negative="ranked"):
    return {"prompt": name, "chosen": {"bytes": chosen}, "rejected": {"bytes": rejected}, "source": source, "negative": negative}


def score(images, prompts):
    """The number that an image says."""
    return np.array([float(image) for image in images])


def test_shares_with_the_wilson_interval_by_hand():
    share = Share.of(np.array([True] * 9 + [False]))
    z, n, p = 1.959964, 10, 0.9
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (share.right, share.pairs, share.value) == (9, 10, 0.9)
    assert (share.low, share.high) == (pytest.approx(middle - half, abs=1e-6), pytest.approx(middle + half, abs=1e-6))


def test_pairs_are_judged_by_source_and_kind(tmp_path):
    pairs = [
        row("p", b"2", b"1"),
        row("p", b"1", b"1"),  # a tie is wrong
        row("p", b"nan", b"1"),
        row("p", b"3", b"1", source="b", negative="aspect:color"),
        {**row("p", b"3", b"1"), "rejected": None},
        row("p", b"9", b"1"),
    ]
    judged = judge(pairs, score, weights="w", beta=1.0, limit=4, batch=3)
    assert judged.margins == (1.0, 0.0, 2.0) and judged.missing == 1
    assert judged.accuracy.right == 2 and {name: share.right for name, share in judged.by_source.items()} == {"a": 1, "b": 1}
    assert judged.by_negative["aspect:color"].pairs == 1
    files = write(judged, tmp_path)
    assert json.loads((tmp_path / "reward.json").read_text())["accuracy"]["pairs"] == 3
    page = (tmp_path / "reward.html").read_text()
    assert files["report"].endswith("reward.html") and "negative: aspect:color" in page and page.count("<svg") == 2 and "<style>" in page
    with pytest.raises(UserError, match="no pair with both images"):
        judge(pairs[4:5], score, weights="w", beta=1.0, limit=4)


def test_calibration_by_hand():
    margins = np.log(np.array([3.0, 3.0, 3.0, 1 / 3]))  # confidence 3/4 each, three of four right
    found = calibrated(margins, beta=1.0)
    ((sure, share, count),) = found["calibration"]
    assert (sure, share, count) == (pytest.approx(0.75), 0.75, 4) and found["calibration_error"] == pytest.approx(0)
    assert calibrated(margins, beta=2.0)["calibration_error"] == pytest.approx(9 / 10 - 3 / 4)
