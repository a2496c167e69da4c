"""The middle frame of a video. The only module that imports PyAV, which is an optional package.

Only AVI with the codecs below is read: other containers can name further files to open.
"""

from __future__ import annotations

import io

from PIL import Image

from pipeline.data.decoding import MAX_PIXELS, SampleError
from pipeline.data.prepare.source_images import damage_named
from pipeline.errors import ConfigError

SUFFIX = ".avi"

_CODECS = ("mpeg4", "h264", "mjpeg")  # UCF101 is MPEG-4
_MOST_PIXELS = 1 << 34  # of all frames up to the middle one: 200 times the longest video of UCF101


def is_video_file(path: str) -> bool:
    """Whether the name is that of a video that can be read."""
    return path.lower().endswith(SUFFIX)


def check_reader(place: str) -> None:
    """Return if this machine can read videos.

    Raises:
        ConfigError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{place}: has videos, which need the package av ({error}); install it: pip install av"
        ) from None


def middle_frame(data: bytes) -> Image.Image:
    """The frame ``n // 2``, counted from 0, of an AVI file whose header states ``n`` frames.

    Raises:
        SampleError: it is damaged up to that frame, or of another form.
    """
    import av

    with damage_named(), av.open(io.BytesIO(data), format="avi") as container:
        if not container.streams.video:
            raise SampleError("has no video")
        stream = container.streams.video[0]
        codec, middle = stream.codec_context, stream.frames // 2
        if codec.name not in _CODECS:
            raise SampleError(f"is coded as {codec.name}, which is none of {', '.join(_CODECS)}")
        pixels = codec.width * codec.height
        if pixels > MAX_PIXELS or pixels * (middle + 1) > _MOST_PIXELS:
            size = f"{codec.width} × {codec.height} pixels"
            raise SampleError(f"has {stream.frames:,} frames of {size}, which is too much to read")
        codec.thread_count = 1  # every image has a process
        number = 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                break  # cut off: the decoder would fill the frame with an earlier one
            for frame in packet.decode():
                if number == middle:
                    return frame.to_image()
                number += 1
    raise SampleError(f"ends before frame {middle:,}, the middle one")
