"""Between decoded frames and 8-bit RGB: colour matrix, range and orientation."""

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

# AVColorSpace (ITU-T H.273 matrix coefficients) -> what swscale calls it.
MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
# Without the two flags swscale's fast path is off by up to 3 levels.
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def untagged_matrix(width: int, height: int) -> Colorspace:
    """BT.709 for HD, BT.601 below it, as players do with videos that do not say."""
    return Colorspace.ITU709 if width >= 1280 or height > 576 else Colorspace.ITU601


def frame_to_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Any pixel format, matrix and range -> (H, W, 3) uint8 RGB, upright. Alpha is dropped.

    reformatter: one for all frames of a video; its tables cost as much as converting a frame.
    """
    layout, matrix = "rgb24", None
    if not frame.format.is_rgb:
        layout = "gbrp"  # the same values; swscale's way there is more than twice as fast
        untagged = untagged_matrix(frame.width, frame.height)
        matrix = MATRICES.get(int(frame.colorspace), untagged)
    rgb = reformatter.reformat(
        frame,
        format=layout,
        src_colorspace=matrix,
        dst_color_range=ColorRange.JPEG,
        interpolation=EXACT,
    )
    return np.ascontiguousarray(upright(rgb.to_ndarray(), frame))


def upright(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """(H, W, ...) as stored -> as the frame's display matrix says: quarter turns and mirroring."""
    # av's annotations leave its keys open
    side_data = frame.side_data.get(SideDataType.DISPLAYMATRIX)  # ty: ignore[no-matching-overload]
    if side_data is None:
        return image
    # (x, y) as stored -> (a x + c y, b x + d y) on screen; rows (a b u) (c d v) (x y w).
    a, b, _, c, d = np.frombuffer(bytes(side_data), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image = image.swapaxes(0, 1)
        x_sign, y_sign = c, b
    else:
        x_sign, y_sign = a, d
    return image[:: -1 if y_sign < 0 else 1, :: -1 if x_sign < 0 else 1]
