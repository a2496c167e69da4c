"""Videos of a few frames. PyAV is an optional package, and tests of videos need it."""

from __future__ import annotations

import io

import av
import numpy as np

SIZE = (64, 48)


def video_file(n_frames: int, *, codec: str = "mpeg4", size: tuple[int, int] = SIZE) -> bytes:
    """An AVI file whose frame ``n`` is grey of the value ``20 * n``."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(n_frames):
            grey_HWC = np.full((size[1], size[0], 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey_HWC, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
