"""Scores against independent implementations, and the traps that eval-fid guards."""

import shutil

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load

from snrkit.base.cache import cache_folder, keep
from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.base.records import to_json
from snrkit.commands.eval_fid import score_pair
from snrkit.data import Digits
from snrkit.data.dataset import Split, memory_dataset, split
from snrkit.experiment.scorer import disjoint
from snrkit.metrics.classifier import train_classifier
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.estimate import Error
from snrkit.metrics.extractors import INCEPTION_FILE, make_extractor, principal
from snrkit.metrics.features import FeatureSet, extract, reference_features
from snrkit.metrics.memorisation import memorisation, nearest
from snrkit.metrics.scores import PRIMARY, Scores, score, summarise, titles_on
from snrkit.metrics.statistics import FeatureGaussian, RunningMoments, frechet

WORLD = World(0, 1, torch.device("cpu"))


def gaussian_of(features):
    moments = RunningMoments(features.shape[1])
    for part in features.split(37):
        moments.add(part)
    return moments.reduce(WORLD)


def test_streamed_moments_are_numpys():
    """Mean and unbiased covariance, to 1e-12, however the features arrive."""
    features = torch.randn(500, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64) + 5
    found = gaussian_of(features)
    torch.testing.assert_close(found.mean, features.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.covariance, torch.from_numpy(np.cov(features.numpy().T)), rtol=1e-10, atol=1e-10)


def test_frechet_is_the_textbook_formula():
    """Against scipy's sqrtm of the product, and torch-fidelity's own function."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    a = gaussian_of(torch.randn(400, 10, dtype=torch.float64) @ torch.randn(10, 10, dtype=torch.float64))
    b = gaussian_of(torch.randn(300, 10, dtype=torch.float64) + 0.5)
    product = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    textbook = float(((a.mean - b.mean) ** 2).sum() + (a.covariance + b.covariance).trace()) - 2 * product.trace().real
    assert frechet(a, b) == pytest.approx(textbook, rel=1e-9)
    stats = [{"mu": g.mean.numpy(), "sigma": g.covariance.numpy()} for g in (a, b)]
    theirs = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert frechet(a, b) == pytest.approx(theirs, rel=1e-9)


def test_frechet_of_shifted_and_scaled_gaussians_in_closed_form():
    """|shift|^2 + d (s - 1)^2 for N(0, I) against N(shift, s^2 I); 0 with itself; symmetric."""
    eye = torch.eye(5, dtype=torch.float64)
    a = FeatureGaussian(torch.zeros(5, dtype=torch.float64), eye, 9)
    b = FeatureGaussian(torch.full((5,), 0.3, dtype=torch.float64), 4 * eye, 9)
    assert frechet(a, b) == pytest.approx(5 * 0.09 + 5 * 1.0)
    assert frechet(b, a) == pytest.approx(frechet(a, b))
    assert frechet(b, b.with_root()) == pytest.approx(0, abs=1e-12)


def test_frechet_is_finite_with_singular_covariances():
    """Fewer images than features: no NaN, no complex number, and the value of the textbook formula."""
    a, b = (gaussian_of(torch.randn(8, 20, dtype=torch.float64)) for _ in range(2))
    singular = torch.linalg.svdvals(_factor(a).T @ _factor(b)).sum()
    expected = float(((a.mean - b.mean) ** 2).sum() + (a.covariance + b.covariance).trace() - 2 * singular)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6)


def _factor(gaussian):
    values, vectors = torch.linalg.eigh(gaussian.covariance)
    return vectors * values.clamp(min=0).sqrt()


@pytest.fixture(scope="module")
def digits():
    dataset = Digits().open()
    return dataset, split(dataset.count, 0.1)


@pytest.fixture(scope="module")
def first(digits, tmp_path_factory):
    """A classifier of digits and the folder that holds nothing but its weights."""
    folder = tmp_path_factory.mktemp("classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNRKIT_CACHE", str(folder))
        return train_classifier(*digits), folder


def test_the_classifier_is_good_repeatable_and_cached(digits, first, monkeypatch):
    """Right on more than 95 % of held-out digits; the cached weights are those that training gives again."""
    assert first[0].accuracy > 0.95
    (path,) = first[1].iterdir()
    stored = load(path.read_bytes())
    afresh = train_classifier(*digits).network.state_dict()
    monkeypatch.setenv("SNRKIT_CACHE", str(first[1]))
    again = train_classifier(*digits).network.state_dict()
    for name, tensor in stored.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, afresh[name])


def test_scores_order_real_noisy_and_wrong_images(digits):
    """FD, KID and IS of real digits beat those of noisy digits, which beat noise; names say whose features they are."""
    dataset, parts = digits
    config = MetricsConfig(features="classifier")
    extractor = make_extractor(config, dataset, parts, WORLD.device)
    assert list(titles_on(extractor.name).values())[:4] == [
        "FD-digits",
        "floor of FD-digits",
        "IS-digits",
        "KID-digits",
    ]
    reference = reference_features(extractor, dataset, parts.train, 256, WORLD)
    real = dataset.pixels(parts.train[:600]).float()
    noisy = (real + 60 * torch.randn(real.shape)).clamp(0, 255)
    scores = [
        score(
            extract(extractor, memory_dataset("x", images.to(torch.uint8)), range(600), 128, WORLD), reference, config
        )
        for images in (real, noisy, 255 * torch.rand(real.shape))
    ]
    real, noisy, wrong = (found.values for found in scores)
    assert real["fd"] < noisy["fd"] < wrong["fd"]
    assert real["kid"] < noisy["kid"] < wrong["kid"]
    assert real["inception_score"] > noisy["inception_score"] > wrong["inception_score"]
    assert real["precision"] > 0.9
    assert wrong["recall"] < 0.1


def test_reference_statistics_are_cached_by_content(digits, tmp_path, monkeypatch):
    """The same images give the same file; another choice of images or features another; the result is equal."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path))
    dataset, parts = digits
    extractor = make_extractor(MetricsConfig(features="pixels"), dataset, parts, WORLD.device)
    first = reference_features(extractor, dataset, parts.train, 256, WORLD)
    count = len(list(cache_folder().glob("reference-*")))
    second = reference_features(extractor, dataset, parts.train, 64, WORLD)
    assert len(list(cache_folder().glob("reference-*"))) == count
    assert torch.equal(first.gaussian.covariance, second.gaussian.covariance)
    reference_features(extractor, dataset, parts.train[:-1], 256, WORLD)
    assert len(list(cache_folder().glob("reference-*"))) == count + 1


def test_other_weights_have_other_reference_statistics(digits, first, tmp_path, monkeypatch):
    """A classifier whose weights changed is another extractor, whatever its data and recipe."""
    shutil.copytree(first[1], tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path))
    before = make_extractor(MetricsConfig(features="classifier"), *digits, WORLD.device)
    (path,) = tmp_path.glob("classifier-*")
    keep(path.stem, {name: 1.5 * tensor for name, tensor in load(path.read_bytes()).items()})
    assert make_extractor(MetricsConfig(features="classifier"), *digits, WORLD.device).key != before.key


def test_pixel_features_are_an_isometry_when_all_are_kept(digits):
    """With every component, distances between features are distances between images."""
    dataset, parts = digits
    extractor = make_extractor(MetricsConfig(features="pixels", pixel_components=64), dataset, parts, WORLD.device)
    assert (extractor.name, extractor.dim) == ("pixel", 64)
    pixels = dataset.pixels(range(10))
    features, logits = extractor.run(pixels)
    assert logits is None
    wanted = torch.cdist(dataset.x0(range(10)).flatten(1), dataset.x0(range(10)).flatten(1))
    torch.testing.assert_close(torch.cdist(features, features), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [3, 12, 40])
def test_leading_components_are_those_of_the_whole_decomposition(count):
    """Few are found without the others: the same subspace, in the same order, orthonormal."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))[0]
    covariance = basis @ torch.diag(0.8 ** torch.arange(60, dtype=torch.float64)) @ basis.T
    found = principal(covariance, count)
    torch.testing.assert_close(found.T @ found, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close((found * basis[:, :count]).sum(0).abs(), torch.ones(count, dtype=torch.float64))


def test_pixel_components_are_found_once(digits, tmp_path, monkeypatch):
    """They are kept with their signs, and other components have other reference statistics."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path))
    first = make_extractor(MetricsConfig(features="pixels"), *digits, WORLD.device)
    (path,) = tmp_path.glob("pixels-*")
    assert make_extractor(MetricsConfig(features="pixels"), *digits, WORLD.device).key == first.key
    stored = load(path.read_bytes())
    keep(path.stem, stored | {"basis": -stored["basis"]})
    other = make_extractor(MetricsConfig(features="pixels"), *digits, WORLD.device)
    assert other.key != first.key
    pixels = digits[0].pixels(range(3))
    torch.testing.assert_close(other.run(pixels)[0], -first.run(pixels)[0])


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """The file of random weights."""
    return seeded_inception(tmp_path_factory.mktemp("inception"))


def seeded_inception(folder):
    """Random weights in torch-fidelity's layout, saved as its file is."""
    from unittest.mock import patch

    from torch_fidelity import feature_extractor_inceptionv3 as module

    with (
        patch.object(module, "load_state_dict_from_url", lambda *a, **k: {}),
        patch.object(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None),
    ):
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("conv.weight") or name == "fc.weight":
            fan = tensor[0].numel()
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan) ** 0.5)
    path = folder / INCEPTION_FILE
    torch.save(network.state_dict(), path)
    return path


def test_inception_path_equals_torch_fidelity(tmp_path, digits, inception):
    """Our FID, IS and KID with random Inception weights are those that torch-fidelity computes from two folders."""
    import torch_fidelity

    from snrkit.commands.sample import encode

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(12):
            pixels = torch.from_numpy(rng.integers(0, 256, (3, 16, 16), dtype=np.uint8))
            (tmp_path / name / f"{i:02d}.png").write_bytes(encode(pixels))
    config = MetricsConfig(features="inception", weights=inception, batch=8)
    ours = to_json(score_pair(str(tmp_path / "a"), str(tmp_path / "b"), config, None, WORLD))
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "a"), input2=str(tmp_path / "b"), fid=True, isc=True, kid=True, kid_subset_size=12,
        kid_subsets=1, isc_splits=6, cuda=False, cache=False, verbose=False, batch_size=8,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(inception),
    )  # fmt: skip
    assert {"fd": "FID", "is": "IS", "kid": "KID"}.items() <= ours["names"].items()
    assert ours["fd"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    assert any("too few" in warning for warning in ours["warnings"])
    grey = memory_dataset("grey", torch.zeros(2, 1, 16, 16, dtype=torch.uint8))
    extractor = make_extractor(config, grey, Split((0, 1), ()), WORLD.device)
    features, logits = extractor.run(grey.pixels([0, 1]))
    colour, _ = extractor.run(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert torch.equal(features, colour)
    assert logits.shape == (2, 1008)


def test_inception_without_weights_says_what_to_put_where(tmp_path, monkeypatch, digits):
    """One sentence with the file's name and the folder; a wrong file is named too."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SnrkitError, match=rf"{INCEPTION_FILE}: put it into .*checkpoints"):
        make_extractor(MetricsConfig(features="inception"), *digits, WORLD.device)
    (tmp_path / "wrong.pth").write_bytes(b"not weights")
    with pytest.raises(SnrkitError, match="is not a plain state dict"):
        make_extractor(MetricsConfig(features="inception", weights=tmp_path / "wrong.pth"), *digits, WORLD.device)
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(SnrkitError, match="does not hold Inception's weights"):
        make_extractor(MetricsConfig(features="inception", weights=tmp_path / "other.pth"), *digits, WORLD.device)


def test_a_classifier_without_labels_is_refused():
    """With the name of the images and what to score by instead."""
    plain = memory_dataset("plain", torch.zeros(4, 1, 8, 8))
    with pytest.raises(SnrkitError, match=r"needs labels, which plain does not have; set metrics.features to pixels"):
        make_extractor(MetricsConfig(features="classifier"), plain, split(4, 0.0), WORLD.device)


@pytest.mark.parametrize("features", ["dinov2-vit-b-14", "clip-vit-b-32"])
def test_other_extractors_without_weights_are_refused(tmp_path, monkeypatch, digits, features):
    """Nothing is fetched unasked, also where the hub folder holds something else."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / INCEPTION_FILE).write_bytes(b"x")
    with pytest.raises(SnrkitError, match="needs weights that are not here"):
        make_extractor(MetricsConfig(features=features), *digits, WORLD.device)


def feature_set(features):
    return FeatureSet(gaussian_of(features), features.float())


def test_kid_and_precision_recall_are_guarded():
    """Fewer images than the subset size: KID uses all; fewer than the neighbourhood: no precision, a warning."""
    reference = feature_set(torch.randn(50, 4))
    found = score(feature_set(torch.randn(40, 4)), reference, MetricsConfig())
    assert np.isfinite(found.values["kid"])
    few = score(feature_set(torch.randn(3, 4)), reference, MetricsConfig())
    assert few.values["precision"] is None
    assert any("precision and recall" in w for w in few.warnings)
    assert any("too few for 4 features" in w for w in few.warnings)
    assert (found.biased, few.biased) == ((), ("fd",))
    with pytest.raises(SnrkitError, match="too few to score"):
        score(feature_set(torch.randn(1, 4)), reference, MetricsConfig())


def test_kid_has_no_bias():
    """KID of two samples of one distribution is 0 on average, unlike FD."""
    values = [
        score(feature_set(torch.randn(60, 4)), feature_set(torch.randn(60, 4)), MetricsConfig()).values["kid"]
        for _ in range(40)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / 40**0.5


def test_memorisation_sees_copies():
    """Copies of training images are nearer than held-out ones; fresh draws of the same distribution are as near."""
    train, held, fresh = (torch.randn(300, 1, 2, 2) for _ in range(3))
    of_held = nearest(held, train.split(64))
    copies = memorisation(nearest(train[:100], train.split(64)), of_held)
    assert (copies.samples, copies.nearer) == (pytest.approx(0, abs=1e-6), 1.0)
    assert memorisation(nearest(fresh, [train]), of_held).nearer == pytest.approx(0.5, abs=0.1)
    far = nearest(train[:1] + 10, [train])
    assert 6 < float(far) < 14


def test_pairs_of_sets_are_checked(tmp_path, inception):
    """Unequal counts warn; different sizes and a reference that is not images are refused; EDM statistics are read."""
    images = torch.randint(0, 256, (30, 6, 6, 1), dtype=torch.uint8).numpy()
    np.savez(tmp_path / "a.npz", images)
    np.savez(tmp_path / "b.npz", images[:20])
    np.savez(tmp_path / "few.npz", images[:3])
    np.savez(tmp_path / "c.npz", images[:, :5])
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(tmp_path / "colour.npz", images.repeat(3, axis=3))
    paths = {name: str(tmp_path / f"{name}.npz") for name in ("a", "b", "few", "c", "colour", "stats")}
    config = MetricsConfig(features="pixels")

    def distance(first, second, of=config):
        return score_pair(paths[first], paths[second], of, None, WORLD).scores.values["fd"]

    assert distance("a", "a") == pytest.approx(0, abs=1e-4)
    unequal = score_pair(paths["b"], paths["a"], config, None, WORLD)
    assert any("20 images against 30" in w for w in unequal.scores.warnings)
    for first, second, words in (
        ("a", "c", "images of 6x6"),
        ("a", "colour", "with 3 channel"),
        ("stats", "a", "holds statistics, not images"),
        ("a", "stats", "features=inception"),
    ):
        with pytest.raises(SnrkitError, match=words):
            score_pair(paths[first], paths[second], config, None, WORLD)
    assert distance("stats", "stats") == pytest.approx(0, abs=1e-9)
    with pytest.raises(SnrkitError, match="neither a folder"):
        score_pair("nothing", paths["a"], config, None, WORLD)
    with pytest.raises(SnrkitError, match="needs --root"):
        score_pair("cifar10", paths["a"], config, None, WORLD)
    assert np.isfinite(distance("few", "stats", MetricsConfig(features="inception", weights=inception)))


def test_ranges_are_disjoint_and_summarised():
    """Three ranges of equal length; mean, smallest, largest, standard deviation, and the error of the mean.

    The images' own errors fall as the ranges are more, as they are independent; the reference's stays.
    """
    assert [list(r) for r in disjoint(7, 3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(SnrkitError, match="do not make"):
        disjoint(3, 2)
    each = [
        Scores(2, {"fd": v, "inception_score": None, "kid": 0.0, "precision": 1.0, "recall": 1.0})
        for v in (1.0, 2.0, 4.5)
    ]
    summary = summarise(each)
    assert "inception_score" not in summary
    assert to_json(summary["fd"]) == {
        "mean": 2.5, "min": 1.0, "max": 4.5, "std": pytest.approx(1.8028, abs=1e-4), "error": None,
    }  # fmt: skip
    known = [Scores(2, {"kid": v}, errors={"kid": Error(0.3, 0.4)}) for v in (1.0, 2.0, 3.0)]
    entry = summarise(known)["kid"]
    assert entry.error == Error(pytest.approx(0.3 / 3**0.5), pytest.approx(0.4))
    assert entry.interval == pytest.approx([2 + sign * 1.96 * (0.03 + 0.16) ** 0.5 for sign in (-1, 1)], abs=1e-4)


def test_fid_is_inception_s_alone():
    """FID's name belongs to Inception alone; a title that says nothing of features is the same on all."""
    assert titles_on("dinov2-vit-b-14")["fd"] == PRIMARY.on("dinov2-vit-b-14") == "FD-dinov2-vit-b-14"
    assert titles_on("inception")["fd"] == "FID"
    assert "precision" not in titles_on("inception")
