import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from omr_ray.data.buckets import bucket_sizes, fit, nearest_bucket


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_the_sizes_of_sdxl():
    sizes = bucket_sizes(1024, 64, 2.0)
    assert sizes[:3] == [(704, 1408), (768, 1344), (832, 1216)] and (1024, 1024) in sizes and len(sizes) == 11
    assert bucket_sizes(512, 128, 2.0) == [(384, 640), (512, 512), (640, 384)]
    assert bucket_sizes(64, 64, 2.0) == [(64, 64)] and bucket_sizes(512, 64, 1.0) == [(512, 512)] and bucket_sizes(50, 64, 2.0) == []


@given(st.integers(1, 40), st.sampled_from([8, 16, 64]), st.floats(1, 4))
def test_every_size_keeps_the_limits(count, multiple, ratio):
    side = count * multiple
    for height, width in bucket_sizes(side, multiple, ratio):
        assert height % multiple == width % multiple == 0
        assert 0.9 * side**2 <= height * width <= side**2 and max(height, width) <= ratio * min(height, width)


def test_an_image_goes_where_its_ratio_is_nearest():
    sizes = bucket_sizes(512, 128, 2.0)
    assert [nearest_bucket(*size, sizes) for size in ((300, 300), (1000, 3000), (400, 250))] == [(512, 512), (384, 640), (640, 384)]


def test_the_middle_is_kept_and_told():
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 10:30] = np.arange(20, dtype=np.uint8)[None, :, None]  # scaled by 1: columns 10 to 29 are the middle
    fitted = fit(png(wide), (10, 20))
    np.testing.assert_array_equal(fitted.pixels, wide[:, 10:30])
    assert fitted.conditioning == (10, 40, 0, 10, 10, 20)
    scaled = fit(png(np.full((5, 40, 3), 7, np.uint8)), (10, 20))  # twice as large, then 30 columns off each side
    assert scaled.conditioning == (5, 40, 0, 30, 10, 20)
    np.testing.assert_array_equal(scaled.pixels, np.full((10, 20, 3), 7))
    assert fit(png(np.zeros((1, 3, 3), np.uint8)), (16, 16)).pixels.shape == (16, 16, 3)


def test_what_covers_never_falls_short():
    for height, width in ((17, 31), (333, 222), (1, 1), (101, 100)):
        assert fit(png(np.zeros((height, width, 3), np.uint8)), (48, 80)).pixels.shape == pytest.approx((48, 80, 3))
