"""Measuring codecs on videos: every model on every video, as far as they are this process's."""

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

from tqdm import tqdm

from diffusion.app.evaluating.evaluation_request import Evaluation
from diffusion.app.evaluating.measure_codec import (
    CodecMeasurer,
    Measured,
    is_measured,
    keep_measured,
    keep_originals,
)
from diffusion.app.training.encode_set import Part
from diffusion.data.video.clip import Clip
from diffusion.evaluation.codecs.codecs_by_name import CodecOptions, build_codec, parse_spec
from diffusion.evaluation.report.results import Measurements
from diffusion.utils.files import locked
from diffusion.utils.overlap import Overlap


def measure_part(what: Evaluation, options: CodecOptions, part: Part) -> None:
    """Measure what is not in the folder yet of this process's videos."""
    measurements = Measurements(what.folder)
    check_models(measurements, what, options)
    mine = dict(list(what.videos.items())[part.index :: part.count])
    good = keep_originals(measurements, mine, what.protocol)
    metrics = what.usable_metrics()
    missing = [
        (model, name)
        for model in what.models
        for name in good
        if not is_measured(measurements.read(model, name), metrics)
    ]

    def read() -> Iterator[tuple[str, str, Clip]]:
        for model, name in missing:
            yield model, name, what.protocol.read(good[name])

    def keep(items: Iterable[Measured]) -> None:
        for item in items:
            keep_measured(item, measurements)

    hidden = part.index > 0
    with (
        Overlap() as overlap,
        tqdm(total=len(missing), disable=hidden, delay=1.0, leave=False, file=sys.stderr) as bar,
    ):
        # On a CPU, reading and writing would take the time and memory that is measured.
        beside = options.device.type == "cuda"
        clips = overlap.ahead(read()) if beside else read()
        hand_over = overlap.behind(keep, depth=1) if beside else lambda item: keep([item])
        for model, its_clips in groupby(clips, key=itemgetter(0)):
            bar.set_description(model, refresh=False)
            measure = CodecMeasurer(build_codec(model, options), metrics, options.device)
            for _, name, clip in its_clips:
                hand_over(measure(name, clip))
                bar.update()
            del measure  # before the next codec is loaded


def check_models(measurements: Measurements, what: Evaluation, options: CodecOptions) -> None:
    """Build every codec once, so that the last one is not refused after hours with the first.

    Also if it is not what it was when it was measured before.
    """
    for model in what.models:
        parse_spec(model)  # at once what needs no loading
    with locked(measurements.folder / ".lock"):
        measurements.check("", what.protocol.describe())
    for model in what.models:
        codec = build_codec(model, options)
        with locked(measurements.folder / ".lock"):
            measurements.check(model, codec.made_with(), facts=codec.facts())
