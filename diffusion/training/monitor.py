"""What a training run leaves to be looked at while it runs."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from diffusion.data.transforms import to_uint8
from diffusion.data.video.video_writer import VideoWriter
from diffusion.utils.files import make_folder, replacing
from diffusion.utils.scalars import append_scalars, forget_scalars_after


class Monitor:
    """Scalars, pictures and videos of a run, in its folder and for TensorBoard.

        scalars.jsonl                       every scalar
        tensorboard/                        scalars and pictures
        validation/step_00001000/NAME.png   pictures, and videos as NAME.mp4

    step: after which the run continues; 0 for one that begins. What an earlier run recorded of
        later steps is dropped, since it comes again.
    """

    def __init__(self, work_dir: str | Path, step: int = 0):
        self.work_dir = make_folder(work_dir)
        first = step + 1 if step else 0  # a run that begins records step 0 too
        forget_scalars_after(self.scalars_file, first - 1)
        board = make_folder(self.work_dir / "tensorboard")
        self.board = SummaryWriter(str(board), purge_step=first)

    @property
    def scalars_file(self) -> Path:
        return self.work_dir / "scalars.jsonl"

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        append_scalars(self.scalars_file, step, scalars)
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)
        self.board.flush()

    def pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Pictures (3, H, W) in [-1, 1] by name."""
        folder = self._folder(step)
        for name, picture in pictures.items():
            pixels = to_uint8(picture[:, None])[0]  # (H, W, 3)
            with replacing(folder / f"{name}.png") as partial:
                Image.fromarray(pixels).save(partial, format="png")
            self.board.add_image(f"validation/{name}", pixels, step, dataformats="HWC")
        self.board.flush()

    def videos(self, step: int, videos: Mapping[str, tuple[Tensor, float]]) -> None:
        """Videos (3, F, H, W) in [-1, 1], with their frames per second, by name."""
        folder = self._folder(step)
        for name, (video, fps) in videos.items():
            with VideoWriter(folder / f"{name}.mp4", fps) as writer:
                writer.write(video)

    def close(self) -> None:
        self.board.close()

    def _folder(self, step: int) -> Path:
        return make_folder(self.work_dir / "validation" / f"step_{step:08d}")
