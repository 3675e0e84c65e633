"""`snrkit init`: a commented YAML that fits the images or the model it is given, and this machine.

What is written is sized so that training takes about an hour on a CPU and about eight on a GPU, by the pace of a few
steps here, of which nothing is kept.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template

import torch
import yaml

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.files import disk_errors, remove_abandoned, write_text
from snrkit.base.hub import lasting, local
from snrkit.base.starters import STARTERS
from snrkit.checkpoints.codec import load_codec
from snrkit.checkpoints.models import kinds_of
from snrkit.commands.certify_model import spacing_of
from snrkit.commands.naming import ENDINGS
from snrkit.commands.pace import duration, rate, training_pace
from snrkit.commands.progress import log
from snrkit.data.dataset import count_classes
from snrkit.data.files import Folder, Listing, Npz, Zip, kind_of_file
from snrkit.data.images import look_at
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.models import FromElsewhere
from snrkit.experiment.run import Run
from snrkit.experiment.yaml_files import plain_values
from snrkit.networks import UNet, make_network
from snrkit.reports.records import Initialised
from snrkit.shift.bootstrap import FEWEST

LOOKED_AT = 200  # headers of images, evenly over the set
SIDES = (256, 128, 64, 32, 16)  # that images of other sizes are packed to
LONGEST = 50_000_000  # images of a training
FEWEST_SEEDS = 500  # images of a sampler
EVALUATIONS = 39  # for an image of each of the three samplers of a file
FORWARD = 3  # evaluations take about as long as a step forward and backward


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine begins with: of the training, of its network, and of the images that are made."""

    hours: float
    largest: int  # side of the images, pixels
    batch: int
    lr: str
    channels: int
    blocks: int
    attention: int  # largest side of the states that attend; 0: none does
    seeds: int
    at_once: int  # images that are sampled together
    shortest: int = 20_000  # training, in images


CPU = Machine(1.0, 32, 64, "1.0e-3", 32, 1, 0, 2_000, 100)
GPU = Machine(8.0, 64, 256, "2.0e-4", 128, 2, 16, 10_000, 500)


@dataclass(frozen=True, slots=True)
class Images:
    """What the images of a place are, by their headers."""

    kind: str
    path: Path
    count: int
    shape: tuple[int, int, int]  # (C, H, W), of sizes that differ the square within all, with the most channels
    alike: bool  # of those that were looked at, in size
    mixed: bool  # grey and RGB, or of other channels than they are to have
    classes: int
    folders: bool  # whether labels are the names of folders

    @property
    def fits(self) -> bool:
        """Whether a network takes them as they are: square, and of a side that halves twice."""
        return self.alike and self.shape[1] == self.shape[2] and self.shape[1] % 4 == 0


def run_init(
    out: Path, data: Path | None, source: Path | None, device: torch.device, minutes: float | None = None
) -> Initialised:
    """Write `out`. SnrkitError where another file is there, or nothing can be known of what was given.

    `minutes` that training is to take; default: those of the machine.
    """
    if minutes is not None and (data is None or source is not None):
        raise SnrkitError("init: --minutes is of a training on images; give --data, and no --from.")
    if out.suffix not in ENDINGS:
        raise SnrkitError(f"init: {out} is no name of a YAML file; end it in .yaml.")
    if out.is_dir():
        raise _is_there(out)
    images, before = None if data is None else look(data), ""
    if images is not None and images.count < 2 * FEWEST:
        raise ConfigError(f"--data: {data} has {images.count} images; give at least {2 * FEWEST}, more to learn from.")
    if source is not None:
        content, before = _of_model(source, images)
        what, then = f"an experiment on the model {source}", "certify"
    elif images is not None:
        if out.exists():  # whose training was sized by another pace, which no two measurements share
            raise SnrkitError(f"init: {out} is there already; move it away, or name another file.")
        machine = CPU if device.type == "cpu" else GPU
        machine = machine if minutes is None else replace(machine, hours=minutes / 60, shortest=machine.batch)
        content, before, takes = _of_images(images, device, machine)
        what, then = f"an experiment that trains on {images.count:,} images, in about {takes} here", "run"
    else:
        kept = [line for line in (STARTERS / "digits.yaml").read_text().splitlines() if not line.startswith("name:")]
        content, what, then = "\n".join(kept) + "\n", "an experiment on scikit-learn's digits", "run"
    made = parse_experiment({"name": out.stem, **plain_values(content)}, str(out))
    if out.exists() and out.read_bytes() != content.encode():
        raise _is_there(out)
    with disk_errors(f"writing {out}", "free space or name another file"):
        remove_abandoned(out.parent, out.name)
        write_text(out, content)
    for text in made.train.remarks if made.model.trains else ():
        log.warning(text)
    return Initialised(str(out.absolute()), what, before, shlex.join(["snrkit", then, str(out)]))


def _is_there(out: Path) -> SnrkitError:
    return SnrkitError(f"init: {out} is there already, and is another; move it away, or name another file.")


def look(path: Path) -> Images:
    """What the images of a folder, a zip or an .npz are. DataError where there are none."""
    here = local(path)
    if not here.exists():
        raise ConfigError(f"--data: {path} does not exist; give a folder, a zip or an .npz of images.")
    if Run(here).config.is_file():
        raise ConfigError(f"--data: {path} is a run of snrkit's own; give the images that a model is to make.")
    kind = kind_of_file(here)
    if kind is None:
        raise ConfigError(f"--data: {path} is no folder, zip or .npz; give one of these.")
    if kind == "npz":
        dataset = Npz(path=path).open()
        return Images(kind, path, dataset.count, dataset.shape, True, False, dataset.classes, False)
    source = Folder(path=path) if kind == "folder" else Zip(path=path)
    listing, folders = source.listing(), False
    if listing.labels is None:
        by_folder = source.model_copy(update={"labels": "folders"}).listing()
        folders = by_folder.labels is not None and len(set(by_folder.labels.tolist())) > 1
        listing = by_folder if folders else listing
    classes = 0 if listing.labels is None else count_classes(listing.where, listing.labels)
    found = _shapes(listing)
    sizes, channels = {shape[1:] for shape in found}, {shape[0] for shape in found}
    height, width = min(sizes) if len(sizes) == 1 else (min(map(min, sizes)),) * 2
    shape = (max(channels), height, width)
    return Images(kind, path, len(listing.names), shape, len(sizes) == 1, len(channels) > 1, classes, folders)


def _shapes(listing: Listing) -> set[tuple[int, int, int]]:
    """(C, H, W) of some images, evenly over the set, by their headers."""
    names = listing.names[:: max(1, len(listing.names) // LOOKED_AT)][:LOOKED_AT]
    return {look_at(listing.opener(name), name).shape for name in names}


def _side(images: Images, largest: int) -> int:
    """Height and width that images are to have for a training."""
    side = min(images.shape[1:])
    if images.fits and side <= largest:
        return side
    fitting = [one for one in SIDES if one <= min(side, largest)]
    if not fitting:
        raise ConfigError(
            f"--data: images of {images.shape[1]}x{images.shape[2]} are smaller than any that are packed."
        )
    return fitting[0]


def _packing(images: Images, side: int) -> str:
    """The command that makes of the images what the file names; empty where they are it already."""
    fits = images.fits and images.shape[1] == side
    if images.kind == "npz" and (images.mixed or not fits):
        found, wanted = ("x".join(map(str, shape)) for shape in (images.shape[1:], (side, side)))
        raise ConfigError(
            f"--data: {images.path} holds images of {found}, and {wanted} are wanted, in the channels of the model; an "
            ".npz is taken as it is. Write them as image files, and give the folder."
        )
    if fits:
        return ""
    labels = ["--labels", "folders"] if images.folders else []
    channels = ["--channels", str(images.shape[0])] if images.mixed else []
    asked = [str(images.path), "-o", str(_packed(images, side)), "--size", str(side), *labels, *channels]
    return shlex.join(["snrkit", "data", "pack", *asked])


def _packed(images: Images, side: int) -> Path:
    return Path(f"{images.path.resolve().stem}-{side}.zip")


def _data(images: Images, side: int) -> str:
    """The lines of `data`."""
    seen = f"# {images.count:,} images" + (f" of {images.classes} classes" if images.classes else "")
    command = _packing(images, side)
    place: dict[str, object] = {"kind": "zip", "path": str(_packed(images, side).absolute())}
    if not command:
        place = {"kind": images.kind, "path": str(lasting(images.path))}
        place |= {"labels": "folders"} if images.folders else {}
        place |= {"channels": images.shape[0]} if images.mixed else {}
    first = f", made squares by: {command}" if command else ""
    return f"{seen}{first}\ndata: {_flow({**place, 'holdout': max(0.1, math.ceil(100 * FEWEST / images.count) / 100)})}"


def _network(side: int, classes: int, machine: Machine) -> UNet:
    """A U-Net that this machine trains in hours, of as many depths as the side halves."""
    depths = 2 if side <= 16 else 3 if side <= 32 or side % 8 else 4
    attends = [side >> depth for depth in range(depths) if side >> depth <= machine.attention]
    return UNet(
        channels=machine.channels,
        multipliers=(1, 2, 2, 2)[:depths],
        blocks=machine.blocks,
        attention=tuple(attends[:1]),
        classes=classes,
    )


def _rounded(images: float, shortest: int) -> int:
    """To two digits, within bounds."""
    images = min(max(images, shortest), LONGEST)
    unit = 10 ** (math.floor(math.log10(images)) - 1)
    return int(images // unit * unit)


def _of_images(images: Images, device: torch.device, machine: Machine) -> tuple[str, str, str]:
    """(a training, the command that comes before it, how long it takes)."""
    side = _side(images, machine.largest)
    network = _network(side, images.classes, machine)
    shape, autocast = (images.shape[0], side, side), torch.bfloat16 if device.type == "cuda" else None
    module = make_network(network, shape, 0).to(device)
    pace = training_pace(module, shape, machine.batch, device, network.conditioning, autocast)
    count = _rounded(pace * 3600 * machine.hours, machine.shortest)
    seeds = _seeds(images.count, machine, FORWARD * pace)
    text = _filled(
        "images",
        {
            "data": _data(images, side),
            "network": _flow({"kind": "unet"} | network.model_dump(mode="json", exclude_defaults=True)),
            "duration": duration(count / pace),
            "sampling": duration(seeds * EVALUATIONS / (FORWARD * pace)),
            "pace": rate(pace),
            "images": count,
            "batch": machine.batch,
            "lr": machine.lr,
            "warmup": count // 20,
            "label_dropout": "  label_dropout: 0.1  # for classifier-free guidance\n" if images.classes else "",
            "half_life": count // 20,
            "save_every": count // 10,
            "samplers": _samplers({"kind": "karras"}, images.count, seeds, machine),
        },
    )
    return text, _packing(images, side), duration(count / pace)


def _seeds(count: int, machine: Machine, a_second: float = math.inf) -> int:
    """How many images each sampler makes, with `count` to compare with: no longer than training, at a rate a second."""
    in_time = min(3600 * machine.hours * a_second / EVALUATIONS, machine.seeds)
    return max(FEWEST_SEEDS, min(count, int(in_time) // 100 * 100))


def _of_model(source: Path, images: Images | None) -> tuple[str, str]:
    """(measurements of a model from elsewhere, the command that comes before them)."""
    here = local(source)
    if not here.exists():
        raise ConfigError(f"--from: {source} does not exist; give a model's file or folder.")
    if Run(here).config.is_file():
        raise ConfigError(
            f"--from: {source} is a run of snrkit's own, which commands take as it is: snrkit certify {source}."
        )
    kinds = kinds_of(here)
    if not kinds:
        raise ConfigError(f"--from: {source} is no model of a kind that is known; docs/models.md lists them.")
    model = {"kind": kinds[0], "path": str(lasting(source))}
    found = FromElsewhere.model_validate({"source": model})
    described, side, count = found.described, 0, 10_000 if images is None else images.count
    data = "data: {kind: folder, path: FOLDER-OF-IMAGES}  # CHANGE THIS: the images that the model is to make"
    if images is not None:
        images, side = _as_made(images, _made_by(found))
        data = _data(images, side)
    text = _filled(
        "model",
        {
            "data": data,
            "model": _flow(model),
            "shape": "x".join(map(str, described.network.shape)),
            "labels": f", {described.network.classes} labels" if described.network.classes else "",
            "process": described.process.kind,
            "target": described.target.kind,
            "also": f"; or kind {kinds[1]}, whose weights look the same" if len(kinds) > 1 else "",
            "samplers": _samplers(spacing_of(here, kinds[0]), count, _seeds(count, CPU), CPU),
        },
    )
    return text, "" if images is None else _packing(images, side)


def _made_by(model: FromElsewhere) -> tuple[int, int, int]:
    """(C, H, W) of the images that a model makes, of which its states may be latents."""
    asked, states = model.autoencoder(), model.described.network.shape
    if asked is None:
        return states
    codec = load_codec(asked, torch.device("cpu"))
    return codec.image_channels, codec.factor * states[1], codec.factor * states[2]


def _as_made(images: Images, shape: tuple[int, int, int]) -> tuple[Images, int]:
    """(Images with the channels of those that a model makes, their side). ConfigError where they are too small."""
    channels, height, width = shape
    if min(images.shape[1:]) < height:
        sizes = f"{images.shape[1]}x{images.shape[2]}", f"{height}x{width}"
        raise ConfigError(f"--data: images of {sizes[0]} are smaller than the {sizes[1]} that the model makes.")
    if channels != images.shape[0]:
        images = replace(images, shape=(channels, *images.shape[1:]), mixed=True)
    return images, height


def _samplers(grid: Mapping[str, object], count: int, seeds: int, machine: Machine) -> str:
    """Three samplers at equal cost, how many images they make, and with how many of `count` these are compared."""
    inner, held = _flow(grid)[1:-1], max(min(count // 10, 500), FEWEST)
    values = {"grid": inner, "last": seeds - 1, "batch": machine.at_once, "held": held}
    return _filled("samplers", values).rstrip()


def _filled(name: str, values: Mapping[str, object]) -> str:
    """A starter with its places filled."""
    return Template((STARTERS / f"{name}.template").read_text()).substitute(values)


def _flow(content: Mapping[str, object]) -> str:
    """A mapping as YAML on one line."""
    return yaml.safe_dump(dict(content), default_flow_style=True, sort_keys=False, width=math.inf).strip()
