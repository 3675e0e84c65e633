"""Feature extractors: what images are compared by.

Only Inception makes an FID or an IS. Scores by other features carry the features' name: FD-digits, IS-digits, FD-pixel,
FD-efflite0, FD-dinov2-vit-b-14. The distance of wavelet packets has a name of its own, FWD.
"""

import contextlib
import io
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrkit.base.cache import kept
from snrkit.base.errors import SnrkitError, reason_of
from snrkit.base.files import write_bytes
from snrkit.base.gradual import Done, Gradual, finished
from snrkit.base.numerics import NUMERICS
from snrkit.base.regular import read_regular
from snrkit.base.tensors import tensors_checksum
from snrkit.base.transfer import send
from snrkit.checkpoints.torch_files import read_torch, weights_of_file
from snrkit.data.dataset import Dataset, Split, chunks, fingerprint, to_bytes, to_unit
from snrkit.data.torchvision_sets import import_torchvision
from snrkit.metrics.classifier import training_classifier
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.efflite0 import EFFLITE0_CLASSES, EFFLITE0_DIM, EFFLITE0_SHA256, load_efflite0, weights_file
from snrkit.metrics.packets import levels_of, packet_coefficients
from snrkit.metrics.statistics import RunningMoments

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_DIM = 2048

LARGEST_WEIGHTS = 2**30  # bytes of Inception's


@dataclass(frozen=True, slots=True)
class Extractor:
    """Features (n, dim) of uint8 or [-1, 1] images (n, C, H, W), with logits (n, classes) where it has them.

    Images lie on the host, and what comes back on the device of the extractor, which may be at it still.
    """

    name: str  # inception, or what stands in titles behind FD-
    dim: int
    key: str  # changes with weights and settings
    run: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    classes: int = 0  # number of logits; 0 for none
    note: str = ""
    packets: int = 0  # runs of equal length of the features, each with moments of its own; 0: one Gaussian of all

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the mean of the features: (dim,), or (packets, d)."""
        return (self.packets, self.dim // self.packets) if self.packets else (self.dim,)


def make_extractor(config: MetricsConfig, dataset: Dataset, split: Split, device: torch.device) -> Extractor:
    """The extractor that a config names. Classifier and pixels learn from `dataset` and `split`, the reference."""
    return finished(making_extractor(config, dataset, split, device))


def making_extractor(config: MetricsConfig, dataset: Dataset, split: Split, device: torch.device) -> Gradual[Extractor]:
    """As `make_extractor`, saying how far a classifier is trained."""
    check_features(config, dataset)
    yield Done("opening the features")
    if config.features == "classifier":
        return (yield from _classifier(dataset, split, device))
    if config.features == "pixels":
        return _pixels(config, dataset, split)
    if config.features == "packets":
        return _packets(dataset)
    if config.features == "efflite0":
        return _efflite0(device)
    return _fidelity(config, device)


def check_features(config: MetricsConfig, dataset: Dataset) -> None:
    """Refuse what `make_extractor` would refuse for want of labels or of weights."""
    if config.features == "classifier" and dataset.labels is None:
        raise SnrkitError(
            f"metrics.features: classifier needs labels, which {dataset.name} does not have; set "
            "metrics.features to pixels or inception."
        )
    if config.features == "inception":
        _inception_weights(config)
    if config.features == "efflite0":
        weights_file()


def _classifier(dataset: Dataset, split: Split, device: torch.device) -> Gradual[Extractor]:
    trained = yield from training_classifier(dataset, split)
    network = trained.network.to(device)

    @torch.no_grad()
    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = network.features(to_unit(send(pixels, device)))
        return features, network.head(features)

    name = dataset.name.removesuffix(".zip").removesuffix(".npz").removesuffix("-train")
    accuracy = "no held-out images" if trained.accuracy is None else f"{trained.accuracy:.1%} right on held-out images"
    return Extractor(
        Path(name).name, network.dim, trained.key, run, dataset.classes, f"classifier of {name}, {accuracy}"
    )


def _pixels(config: MetricsConfig, dataset: Dataset, split: Split) -> Extractor:
    count = min(config.pixel_components, math.prod(dataset.shape))
    recipe = fingerprint("pixels", str(NUMERICS), dataset.fingerprint, repr(split.train), str(count))
    found = kept(f"pixels-{recipe}", lambda: _components(dataset, split, count))

    def project(pixels: Tensor) -> tuple[Tensor, None]:
        return ((to_unit(pixels).flatten(1).double() - found["mean"]) @ found["basis"]).float(), None

    key = fingerprint("pixels", tensors_checksum(found, recipe))
    return Extractor("pixel", count, key, project, note=f"{count} principal components of the reference")


def _components(dataset: Dataset, split: Split, count: int) -> dict[str, Tensor]:
    moments = RunningMoments(math.prod(dataset.shape))
    for run in chunks(split.train, 1024):
        moments.add(dataset.x0(run).flatten(1))
    found = moments.gaussian()
    return {"mean": found.mean, "basis": principal(found.covariance, count)}


def principal(covariance: Tensor, count: int) -> Tensor:
    """(d, count) float64: orthonormal eigenvectors of a covariance (d, d), those of the largest eigenvalues first.

    By Lanczos' method where they are few, which leaves the others alone; it ends in an error where there is no variance
    in the direction in which it begins.
    """
    if 4 * count <= len(covariance):
        from scipy.sparse.linalg import ArpackError, eigsh  # type: ignore[import-untyped]

        start = torch.ones(len(covariance), dtype=torch.float64).numpy()
        with contextlib.suppress(ArpackError):
            return torch.from_numpy(eigsh(covariance.numpy(), count, v0=start)[1]).flip(1).contiguous()
    rising: Tensor = torch.linalg.eigh(covariance)[1][:, -count:]
    return rising.flip(1).contiguous()


def _packets(dataset: Dataset) -> Extractor:
    levels, dim = levels_of(dataset.shape), math.prod(dataset.shape)

    def run(pixels: Tensor) -> tuple[Tensor, None]:
        return packet_coefficients(to_unit(pixels)), None

    key = fingerprint("packets", "haar", str(levels))
    note = f"{4**levels} Haar wavelet packets of {levels} levels"
    return Extractor("packets", dim, key, run, note=note, packets=4**levels)


def _efflite0(device: torch.device) -> Extractor:
    network = load_efflite0().to(device)

    @torch.no_grad()
    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        return network(_colour(pixels, device))

    note = "EfficientNet-Lite0 with its weights of ImageNet"
    return Extractor("efflite0", EFFLITE0_DIM, fingerprint("efflite0", EFFLITE0_SHA256), run, EFFLITE0_CLASSES, note)


def _colour(pixels: Tensor, device: torch.device) -> Tensor:
    """RGB images of uint8 on the device, of grey ones three times the same channel."""
    pixels = pixels if pixels.dtype == torch.uint8 else to_bytes(pixels)
    return send(pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels, device)


def _fidelity(config: MetricsConfig, device: torch.device) -> Extractor:
    """torch-fidelity's extractors."""
    import_torchvision()  # torch-fidelity imports it, and a build that does not fit torch is named there
    if config.features == "inception":
        return _inception(_inception_weights(config), device)
    layer = "dinov2" if config.features.startswith("dinov2") else "clip"
    module = _fidelity_module(config, layer)
    tensors = [tensor.detach().cpu().contiguous().view(-1) for tensor in module.state_dict().values()]
    key = fingerprint(config.features, *(tensor.numpy().tobytes() for tensor in tensors))
    return Extractor(config.features, _dim(module), key, _caller(module, device, [layer]))


def _fidelity_module(config: MetricsConfig, layer: str) -> Any:
    from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    hub = Path(torch.hub.get_dir())
    if layer == "dinov2":
        name = config.features.replace("dinov2-vit-", "dinov2_vit").replace("-14", "14")
        present = any(hub.glob("facebookresearch_dinov2*")) and any(hub.glob(f"checkpoints/{name}*.pth"))
    else:
        present = config.weights is not None and config.weights.is_file()
        if config.weights is not None and not present:
            raise SnrkitError(f"metrics.weights: {config.weights} is no file; give that of the weights, or drop it.")
    if not config.download and not present:
        remedy = f"a filled torch hub cache in {hub}" if layer == "dinov2" else "the file of metrics.weights"
        raise SnrkitError(
            f"metrics.features: {config.features} needs weights that are not here; give {remedy}, "
            "or set metrics.download: true."
        )
    path = str(config.weights) if config.weights is not None else None
    make = FeatureExtractorDinoV2 if layer == "dinov2" else FeatureExtractorCLIP
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return make(config.features, [layer], feature_extractor_weights_path=path)
    except Exception as error:  # torch.hub and the network raise whatever they like
        raise SnrkitError(f"metrics.features: {config.features} could not be loaded ({reason_of(error)}).") from None


def _dim(module: Any) -> int:
    with torch.no_grad():
        return int(module(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0].shape[1])


def _inception_weights(config: MetricsConfig) -> Path:
    hub = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if config.weights is not None:
        if not config.weights.is_file():
            raise SnrkitError(f"metrics.weights: {config.weights} does not exist; give the path of {INCEPTION_FILE}.")
        return config.weights
    if hub.is_file():
        return hub
    if config.download:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        try:
            hub.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(hub), hash_prefix="6726825d", progress=False)
        except (OSError, RuntimeError) as error:
            raise SnrkitError(
                f"downloading {INCEPTION_FILE} failed ({error}); put that file into {hub.parent}."
            ) from None
        return hub
    raise SnrkitError(
        f"features inception need {INCEPTION_FILE}: put it into {hub.parent}, name it with metrics.weights, "
        "or set metrics.download: true."
    )


def _inception(path: Path, device: torch.device) -> Extractor:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        tensors = weights_of_file(read_torch(path), None)
    except SnrkitError as error:
        raise SnrkitError(f"{path} is not a plain state dict; use {INCEPTION_FILE}. ({error})") from None
    with tempfile.TemporaryDirectory() as folder:  # torch-fidelity loads without map_location: hand it a CPU copy
        copy = Path(folder) / "inception.pth"
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        write_bytes(copy, buffer.getvalue())
        layers = [str(INCEPTION_DIM), "logits_unbiased"]
        try:
            module = FeatureExtractorInceptionV3(
                "inception-v3-compat", layers, feature_extractor_weights_path=str(copy)
            )
        except RuntimeError as error:
            raise SnrkitError(
                f"{path} does not hold Inception's weights ({str(error)[:120]}); use {INCEPTION_FILE}."
            ) from None
    return Extractor(
        "inception",
        INCEPTION_DIM,
        fingerprint("inception", read_regular(path, LARGEST_WEIGHTS)),
        _caller(module, device, layers),
        1008,
    )


def _caller(module: Any, device: torch.device, layers: list[str]) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    module = module.to(device=device, memory_format=torch.channels_last).eval()

    @torch.no_grad()
    def run(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        outputs = module(_colour(pixels, device))
        return outputs[0].float(), outputs[1].float() if len(layers) > 1 else None

    return run
