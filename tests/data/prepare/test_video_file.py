"""Videos as images: the middle frame of each, of files that PyAV writes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pipeline.data.decoding import SampleError
from pipeline.data.prepare import video_file as reader
from pipeline.data.prepare.video_file import check_reader, middle_frame
from pipeline.errors import ConfigError
from tests.fuzz import bounded_memory, count_refused
from tests.videos import SIZE, video_file


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
@pytest.mark.parametrize("n_frames", [1, 2, 3, 8, 11])
def test_image_is_the_middle_frame(n_frames, codec):
    frame = middle_frame(video_file(n_frames, codec=codec))
    assert (frame.mode, frame.size) == ("RGB", SIZE)
    assert abs(np.asarray(frame).mean() - 20 * (n_frames // 2)) < 6


def test_end_of_a_video_is_not_needed():
    """must give the frame of the complete file, or none, wherever a download was cut off"""
    whole = video_file(12)
    expected, n_read = np.asarray(middle_frame(whole)), 0
    for size in range(0, len(whole), 61):
        try:
            assert np.array_equal(np.asarray(middle_frame(whole[:size])), expected), size
            n_read += 1
        except SampleError as error:
            assert n_read == 0, error
    assert n_read > 10
    with pytest.raises(SampleError, match="ends before frame 6, the middle one"):
        middle_frame(whole[: len(whole) - 61 * (n_read + 1)])


def test_other_content_is_refused(monkeypatch):
    with pytest.raises(SampleError, match="cannot be read"):
        middle_frame(b"RIFF" + bytes(200))
    with pytest.raises(SampleError, match="cannot be read"):
        middle_frame(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    with pytest.raises(SampleError, match="is coded as ffv1, which is none of mpeg4, h264, mjpeg"):
        middle_frame(video_file(2, codec="ffv1"))
    monkeypatch.setattr(reader, "_MOST_PIXELS", 4 * SIZE[0] * SIZE[1])
    assert middle_frame(video_file(7))
    with pytest.raises(SampleError, match="has 8 frames of 64 × 48 pixels, which is too much"):
        middle_frame(video_file(8))


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"^ucf: has videos, .* install it: pip install av$"):
        check_reader("ucf")


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_damaged_video_is_an_image_or_refused(codec):
    data = video_file(9, codec=codec)
    with bounded_memory(f"video, {codec}", len(data)):
        count_refused(f"video, {codec}", data, middle_frame, default=60)
