"""Sources, splits, augmentation, and what is refused."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from snrkit.base.errors import DataError, SnrkitError
from snrkit.data import Cifar10, Digits, Empirical, Folder, Gaussian, Mixture, Mnist, Npz, Photos, Zip
from snrkit.data.augment import EdmAugment
from snrkit.data.dataset import memory_dataset, moments, read_by_processes, restrict, split, to_bytes, to_unit
from tests.exact import PROCESSES, tensor


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)


def expected(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def write_folder(path, pictures):
    path.mkdir()
    for i, picture in enumerate(pictures):
        (path / f"{i:03d}.png").write_bytes(png(picture))


def test_a_folder_that_is_a_link_is_named(tmp_path, pictures):
    """A class whose folder is a link is refused and not left out; a link to an image is followed."""
    write_folder(tmp_path / "set", pictures[:3])
    write_folder(tmp_path / "elsewhere", pictures[3:])
    (tmp_path / "set/inner").mkdir()
    (tmp_path / "set/inner/6.png").symlink_to(tmp_path / "elsewhere/000.png")
    assert Folder(path=tmp_path / "set").open().count == 4
    (tmp_path / "set/inner/cats").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"set/inner/cats is a link to a folder, and none is followed; put the folder"):
        Folder(path=tmp_path / "set").open()


def test_digits_are_scikit_learns():
    """1,797 grey 8x8 images; 0..16 becomes -1..1; labels 0..9."""
    from sklearn.datasets import load_digits

    bunch, dataset = load_digits(), Digits().open()
    assert (dataset.count, dataset.shape, dataset.classes) == (1797, (1, 8, 8), 10)
    wanted = torch.from_numpy(bunch.images)[:, None].float() / 8 - 1
    torch.testing.assert_close(dataset.x0(range(1797)), wanted, rtol=0, atol=1.001 / 255)
    assert torch.equal(dataset.labels, torch.from_numpy(bunch.target).long())


@given(value=st.integers(0, 255))
def test_bytes_round_trip(value):
    """to_bytes(to_unit(v)) == v for every byte."""
    assert int(to_bytes(to_unit(torch.tensor(value, dtype=torch.uint8)))) == value


def test_folder_zip_and_npz_hold_the_same_images(tmp_path, pictures):
    """One set of pictures through three sources: equal pixels, equal labels from dataset.json and arr_1."""
    labels = [2, 0, 1, 1, 0, 2]
    listing = json.dumps({"labels": [[f"{i:03d}.png", label] for i, label in enumerate(labels)]})
    write_folder(tmp_path / "folder", pictures)
    (tmp_path / "folder" / "dataset.json").write_text(listing)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for i, picture in enumerate(pictures):
            archive.writestr(f"{i:03d}.png", png(picture))
        archive.writestr("dataset.json", listing)
    np.savez(tmp_path / "set.npz", pictures, np.array(labels))
    for source in (Folder(path=tmp_path / "folder"), Zip(path=tmp_path / "set.zip"), Npz(path=tmp_path / "set.npz")):
        dataset = source.open()
        assert torch.equal(dataset.pixels(range(6)), expected(pictures))
        assert dataset.labels.tolist() == labels
        assert dataset.classes == 3


def test_labels_from_folders(tmp_path, pictures):
    """First-level folders in sorted order are the classes."""
    for i, name in enumerate(("cat", "ant")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png(pictures[i]))
    assert Folder(path=tmp_path, labels="folders").open().labels.tolist() == [0, 1]
    assert Folder(path=tmp_path).open().labels is None


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_large_sets_stream_with_workers_in_order(tmp_path, pictures, monkeypatch, kind):
    """Beyond the memory limit images are read as asked for; two processes give the same batches in the same order,
    and nothing is drawn for them."""
    monkeypatch.setattr("snrkit.data.files.IN_MEMORY_BYTES", 10)
    write_folder(tmp_path / "folder", pictures)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted((tmp_path / "folder").iterdir()):
            archive.write(file, file.name)
    source = Folder(path=tmp_path / "folder") if kind == "folder" else Zip(path=tmp_path / "set.zip")
    dataset = source.open()
    assert dataset.streams
    batches = [[5, 0], [3, 3], [1, 2]]
    state = torch.get_rng_state()
    found = list(read_by_processes(dataset, batches, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for pixels, indices in zip(found, batches, strict=True):
        assert torch.equal(pixels, dataset.pixels(indices))
        assert torch.equal(pixels, expected(pictures)[indices])


def test_what_a_process_cannot_read_is_told_in_its_sentence(tmp_path, pictures, monkeypatch):
    """Where its batch would have come, of a set of chosen labels too; not as a traceback of another process."""
    monkeypatch.setattr("snrkit.data.files.IN_MEMORY_BYTES", 10)
    write_folder(tmp_path / "folder", pictures)
    (tmp_path / "folder" / "dataset.json").write_text(json.dumps({"labels": [[f"{k:03d}.png", k] for k in range(6)]}))
    dataset = restrict(Folder(path=tmp_path / "folder").open(), (1, 3, 4))
    (tmp_path / "folder" / "003.png").write_bytes(b"no image")
    found = read_by_processes(dataset, [[0, 2], [0, 1], [2]], 1)
    assert torch.equal(next(found), expected(pictures)[[1, 4]])
    refused = next(found)
    assert isinstance(refused, DataError)
    assert re.fullmatch(r"\S*003\.png is not a readable image .*again\.", str(refused))
    assert torch.equal(next(found), expected(pictures)[[4]])


@given(count=st.integers(20, 400), share=st.floats(0.05, 0.5))
def test_the_split_is_stable_and_disjoint(count, share):
    """Every image is on one side, and keeps its side when the set grows."""
    small, large = split(count, share), split(count + 100, share)
    assert sorted(small.train + small.held) == list(range(count))
    assert set(small.held) == {i for i in large.held if i < count}


def test_the_split_has_the_share_it_was_asked_for():
    """Ten per cent of many images within sampling error; none of none."""
    assert len(split(100_000, 0.1).held) == pytest.approx(10_000, abs=400)
    assert split(50, 0.0).held == ()


def test_moments_are_numpys():
    """Mean and the two variances, against NumPy on the whole set."""
    dataset = Digits().open()
    x0 = dataset.x0(range(500)).double().numpy()
    found = moments(dataset, range(500), batch=64)
    assert found.variance == pytest.approx(x0.var(), rel=1e-9)
    assert found.pixel_variance == pytest.approx(x0.var(axis=0).mean(), rel=1e-9)
    torch.testing.assert_close(found.mean, torch.from_numpy(x0.mean(0)))


@pytest.mark.parametrize("source", [Gaussian(mean=0.2), Mixture(components=3), Empirical(of=Digits(), images=20)])
@pytest.mark.parametrize("name", ["edm", "vp", "flow"])
def test_exact_denoisers_beat_every_scaling_of_themselves(source, name):
    """E|x0_hat - x0|^2 is smallest for the exact denoiser: its residual is orthogonal to any function of x."""
    process = PROCESSES[name]
    dataset = source.open()
    level = process.level(tensor(1.0))
    alpha, sigma = level.scales(torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    x0 = dataset.x0(range(dataset.count)).double()
    x0 = x0[torch.randint(len(x0), (4000,), generator=torch.Generator().manual_seed(0))]
    x = alpha * x0 + sigma * torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    residual = x0 - dataset.exact(process)(x, level).x0
    for probe in (x, torch.tanh(x), torch.ones_like(x)):
        product = (residual * probe).flatten(1).mean(1)
        assert abs(float(product.mean())) < 4.5 * float(product.std()) / len(product) ** 0.5


def test_a_data_sets_denoiser_answers_untold_by_the_level_sampler():
    """told=None averages over the levels that training would draw, each as likely as its posterior at x."""
    from snrkit.data.toy import blind_prior
    from snrkit.training.level_samplers import LogNormal

    process, dataset = PROCESSES["edm"], Gaussian(std=0.5).open()
    prior = blind_prior(lambda u: LogNormal().logsnr(u, process), 200)
    denoise = dataset.exact(process, prior)
    level = process.level(tensor(1.0))
    x = 0.7 * torch.randn(4, 1, 8, 8, dtype=torch.float64)
    spread = 0.25 + torch.exp(-prior)
    away = x.flatten(1).square().sum(1)[:, None]
    share = torch.softmax(-away / spread / 2 - 32 * spread.log(), 1)
    wanted = (share * 0.25 / spread).sum(1)[:, None, None, None] * x
    torch.testing.assert_close(denoise(x, level, told=None).x0, wanted)


def test_empirical_memorises():
    """At low noise the denoiser of a finite set returns the nearest image; at high noise the mean."""
    dataset = Empirical(of=Digits(), images=30).open()
    process, x0 = PROCESSES["edm"], dataset.x0(range(30)).double()
    denoise = dataset.exact(process)
    near = process.level(tensor(6.0))
    torch.testing.assert_close(denoise(x0 + 0.01, near).x0, x0, rtol=0, atol=1e-6)
    far = process.level(tensor(-16.0))
    torch.testing.assert_close(denoise(x0, far).x0, x0.mean(0).expand_as(x0), rtol=0, atol=1e-3)


def test_photos_are_repeatable_crops_with_their_photograph_as_label():
    """The same seed gives the same crops; another seed others; sizes as asked."""
    pytest.importorskip("skimage")
    first, again, other = (Photos(size=16, count=40, seed=seed).open() for seed in (0, 0, 1))
    assert first.shape == (3, 16, 16)
    assert torch.equal(first.pixels(range(40)), again.pixels(range(40)))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert 1 < first.classes <= 12


def test_augmentation_is_neutral_at_probability_zero():
    """No bit changes and all nine parameters are zero, as sampling will say."""
    x0 = torch.randn(5, 3, 8, 8)
    out, told = EdmAugment(probability=0, flip_probability=0).apply(x0, torch.rand(5, 14))
    assert torch.equal(out, x0)
    assert torch.equal(told, torch.zeros(5, 9))


def test_augmentation_tells_what_it_does():
    """A mirror image is told as x-flip and is the flipped image; a quarter turn is rot90 and told as (cos - 1, sin)."""
    x0, only = torch.randn(1, 1, 8, 6), torch.full((1, 14), 0.99)
    u = only.clone()
    u[0, 0], u[0, 6] = 0.0, 0.1
    out, told = EdmAugment(probability=0.5).apply(x0, u)
    torch.testing.assert_close(out, x0.flip(3), rtol=0, atol=1e-5)
    assert told[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    u, x0 = only.clone(), torch.randn(1, 1, 8, 8)
    u[0, 3], u[0, 9] = 0.0, 0.75
    out, told = EdmAugment(probability=0.5).apply(x0, u)
    torch.testing.assert_close(out, torch.rot90(x0, 1, (2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(told[0, 3:5], torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-6)


def test_translation_moves_by_its_share_of_the_image():
    """A normal of 1 with strength 0.25 moves an 8 pixel wide image by two pixels, and is told as 1."""
    x0, u = torch.randn(1, 1, 8, 8), torch.full((1, 14), 0.99)
    u[0, 5], u[0, 12], u[0, 13] = 0.0, 0.8413447, 0.5
    out, told = EdmAugment(probability=0.5, translate_std=0.25).apply(x0, u)
    torch.testing.assert_close(out[..., 2:], x0[..., :-2], rtol=0, atol=1e-4)
    torch.testing.assert_close(told[0, 7:], torch.tensor([1.0, 0.0]), rtol=0, atol=1e-4)


def test_a_half_turn_fits_any_shape():
    """Turning a 4x8 image by pi mirrors it twice, whatever the lengths of its sides."""
    x0, u = torch.randn(1, 1, 4, 8), torch.full((1, 14), 0.99)
    u[0, 3], u[0, 9] = 0.0, 1.0
    out, _ = EdmAugment(probability=0.5).apply(x0, u)
    torch.testing.assert_close(out, x0.flip(2, 3), rtol=0, atol=1e-4)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    """65535 is white, 32896 is 128."""
    Image.fromarray(np.array([[0, 32896], [257, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert Folder(path=tmp_path).open().pixels([0])[0, 0].tolist() == [[0, 128], [1, 255]]


def write_bad(tmp_path, pictures, fault):
    write_folder(tmp_path / "set", pictures)
    if fault == "corrupt":
        (tmp_path / "set" / "003.png").write_bytes(b"\x89PNG not really")
    elif fault == "truncated":
        whole = (tmp_path / "set" / "003.png").read_bytes()
        (tmp_path / "set" / "003.png").write_bytes(whole[: len(whole) // 2])
    elif fault == "sizes":
        (tmp_path / "set" / "003.png").write_bytes(png(pictures[0][:4]))
    elif fault == "labels":
        (tmp_path / "set" / "dataset.json").write_text('{"labels": [["000.png", 1]]}')
    return Folder(path=tmp_path / "set")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("corrupt", "003.png is not a readable image"),
        ("truncated", "003.png is not a readable image"),
        ("sizes", r"000.png is 7x5, 003.png is 7x4"),
        ("labels", "does not label every image"),
    ],
)
def test_bad_folders_name_the_file(tmp_path, pictures, fault, words):
    """One sentence with the file at fault."""
    with pytest.raises(DataError, match=words):
        write_bad(tmp_path, pictures, fault).open()


def test_absent_and_empty_places_are_refused(tmp_path):
    """Missing folder, empty folder, missing zip, something else named .zip, wrong npz, absent torchvision set."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "not.zip").write_text("hello")
    np.savez(tmp_path / "float.npz", np.zeros((2, 3, 3, 1)))
    np.savez(tmp_path / "signed.npz", np.linspace(-1, 1, 18, dtype=np.float32).reshape(2, 3, 3, 1))
    np.savez(tmp_path / "wide.npz", np.zeros((2, 3, 3, 1), dtype=np.int64))
    np.savez(tmp_path / "flat.npz", np.zeros((2, 3), dtype=np.uint8))
    (tmp_path / "moving").mkdir()
    (tmp_path / "sizes").mkdir()
    for side in (4, 6):
        Image.new("L", (side + 1, side)).save(tmp_path / "sizes" / f"{side}.png")
    for name in ("a.png", "b.gif"):
        Image.new("L", (4, 4)).save(tmp_path / "moving" / name)
    np.savez(tmp_path / "objects.npz", np.array([{"a": 1}], dtype=object))
    cases = [
        (Folder(path=tmp_path / "no"), "does not exist"),
        (Folder(path=tmp_path / "empty"), r"holds no images \(.*\); name the place that has them, or convert them"),
        (Zip(path=tmp_path / "no.zip"), "does not exist"),
        (Zip(path=tmp_path / "not.zip"), "is not a zip file"),
        (Zip(path=tmp_path / "empty"), "is a folder and no zip; give kind: folder"),
        (Folder(path=tmp_path / "not.zip"), "is a file and no folder; give kind: zip"),
        (Folder(path=tmp_path / "float.npz"), "give kind: npz"),
        (Folder(path=tmp_path / "moving"), r"b\.gif holds GIF"),
        (Npz(path=tmp_path / "float.npz"), r"must be uint8 .*; save \(images \* 255\)\.round\(\)\.clip"),
        (Npz(path=tmp_path / "signed.npz"), r"not float32 .*; save \(\(images \+ 1\) \* 127\.5\)\.round\(\)\.clip"),
        (Npz(path=tmp_path / "wide.npz"), r"not int64 .*; where its numbers go from 0 to 255, save images\.astype"),
        (Npz(path=tmp_path / "flat.npz"), r"not uint8 \(2, 3\); give one axis to images, height, width and channels"),
        (Folder(path=tmp_path / "sizes"), r"differ in size: .* snrkit data pack .*sizes -o packed\.zip --size 4\."),
        (Npz(path=tmp_path / "objects.npz"), "holds no readable"),
        (Mnist(root=tmp_path), "download: true"),
        (Cifar10(root=tmp_path), "download: true"),
    ]
    for source, words in cases:
        with pytest.raises(SnrkitError, match=words):
            source.open()


@pytest.mark.parametrize(
    ("pixels", "labels", "said"),
    [
        (torch.zeros(0, 1, 2, 2), None, "mine holds no images"),
        (torch.zeros(3, 2, 2), None, r"mine has pixels of shape \(3, 2, 2\); give images \(n, C, H, W\)"),
        (torch.tensor(0.0), None, r"pixels of shape \(\)"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64), r"3 images and labels of shape \(2,\)"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3), r"labels of shape \(3,\) and torch\.float32; give an int64"),
        (torch.zeros(3, 1, 2, 2), torch.tensor([0, -1, 0]), "mine has the label -1; labels count from 0"),
    ],
)
def test_images_in_memory_are_refused_in_a_sentence(pixels, labels, said):
    """With their name, what they are, and what to give."""
    with pytest.raises(DataError, match=said):
        memory_dataset("mine", pixels, labels)


def test_images_in_memory_need_no_gradient():
    """They are held apart from what made them."""
    pixels = torch.rand(3, 1, 2, 2, requires_grad=True)
    found = memory_dataset("mine", pixels).x0([2, 0])
    assert torch.equal(found, pixels[[2, 0]])
    assert not found.requires_grad


def test_mnist_files_are_read_through_torchvision(tmp_path):
    """IDX files in torchvision's layout, written by hand, come back as images and labels."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(4 * 28 * 28, dtype=np.int64).astype(np.uint8).reshape(4, 28, 28)
    for part, count in (("train", 4), ("t10k", 4)):
        head = (2051).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            (2049).to_bytes(4, "big") + count.to_bytes(4, "big") + bytes([3, 1, 0, 2])
        )
    dataset = Mnist(root=tmp_path).open()
    assert torch.equal(dataset.pixels(range(4))[:, 0], torch.from_numpy(images))
    assert dataset.labels.tolist() == [3, 1, 0, 2]


def test_a_mismatched_torchvision_is_named(monkeypatch):
    """`operator torchvision::nms does not exist` becomes one sentence that says what to install."""
    import builtins

    from snrkit.data.torchvision_sets import import_torchvision

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SnrkitError, match="install the ordinary builds together"):
        import_torchvision()


def test_only_keeps_images_of_the_labels_named():
    """Labels keep their numbers, pixels follow, the fingerprint changes, and sampling draws only these labels."""
    from snrkit.data import Digits

    full = Digits().open()
    part = restrict(full, (3, 7))
    assert set(part.labels.tolist()) == {3, 7}
    assert part.classes == full.classes
    kept = [i for i, label in enumerate(full.labels.tolist()) if label in (3, 7)]
    assert part.count == len(kept)
    assert torch.equal(part.pixels([0, 5, part.count - 1]), full.pixels([kept[0], kept[5], kept[-1]]))
    assert part.fingerprint != full.fingerprint
    with pytest.raises(DataError, match=r"no images of the labels \[11\]"):
        restrict(full, (3, 11))


def test_sampling_draws_only_the_labels_that_are_kept():
    """With data.only every image's label is one of them, each about as often."""
    from snrkit.base.distributed import World
    from snrkit.experiment.experiment import parse_experiment
    from snrkit.experiment.models import Weights
    from snrkit.experiment.opening import Model, open_experiment
    from snrkit.experiment.run import Run
    from snrkit.experiment.trajectories import trajectories
    from snrkit.training.randomness import ImageStreams
    from tests.small import SMALL

    content = {**SMALL, "data": {**SMALL["data"], "only": [1, 3]}}
    opened = open_experiment(parse_experiment(content, "small"), World(0, 1, torch.device("cpu")))
    samples = trajectories(opened, Model(None, Weights("network", 0, ""), Run(Path("unused"))))
    labels = samples.labels(ImageStreams(range(400)))
    assert set(labels.tolist()) == {1, 3}
    assert 150 < int((labels == 1).sum()) < 250
