"""Corrections of the noise level for ComfyUI: one file, put into ComfyUI/custom_nodes; it needs nothing but torch.

    snrkit DCW                moves the state away from the predicted image after each step (Yu et al. 2026)
    snrkit epsilon scaling    divides the predicted noise (Ning et al. 2024), right for eps, v and flow models alike
    snrkit time shift         tells the level that the state's variance has, or aims at a noisier one (Li et al. 2024)
    snrkit certificate        the recipe of `snrkit certify`: its levels, its guidance, its corrections and fitted steps

ComfyUI's hooks see what the model says, and not the state that a sampler makes of it. A step of the sampler `euler`
from sigma to sigma' is linear in what the model says, x' = r x + (1 - r) D with r = sigma'/sigma, in every scaling. A
correction that asks for another state y' is therefore put in by saying D' = (y' - r x) / (1 - r). This is exact for
`euler`; epsilon scaling alone changes what the model says and holds for any sampler. With other samplers the others are
refused where that can be seen: at levels that are not the schedule's.

States here are ComfyUI's. They are those of snrkit for flow models (1 - s) x0 + s eps and for EDM's x0 + sigma eps; of
models with a table ComfyUI keeps x/alpha, and corrections act on x, as they do in diffusers.

Weights are not compared with those that a certificate is about: use it with its own model.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CLOSE = 1e-4  # relative, within which two sigmas are the same
CATEGORY = "sampling/snrkit"


@dataclass(frozen=True)
class Scaling:
    """How ComfyUI's states and sigmas of a model are to be read: `vp`, `ve` or `flow`."""

    kind: str

    def alpha(self, sigma: Tensor) -> Tensor:
        """The share of the image in snrkit's state."""
        if self.kind == "flow":
            return 1 - sigma
        return torch.ones_like(sigma) if self.kind == "ve" else 1 / torch.sqrt(1 + sigma**2)

    def sigma(self, sigma: Tensor) -> Tensor:
        """The size of the noise in snrkit's state."""
        return sigma * self.alpha(sigma) if self.kind == "vp" else sigma

    def unit(self, sigma: Tensor) -> Tensor:
        """snrkit's state over ComfyUI's."""
        return self.alpha(sigma) if self.kind == "vp" else torch.ones_like(sigma)

    def logsnr(self, sigma: Tensor) -> Tensor:
        """2 ln(alpha/sigma)."""
        return 2 * torch.log(self.alpha(sigma) / self.sigma(sigma))

    def from_logsnr(self, logsnr: Tensor) -> Tensor:
        """ComfyUI's sigma of a level; that of NaN is pure noise, which flow models alone have."""
        if self.kind == "flow":
            return torch.where(logsnr.isnan(), torch.ones_like(logsnr), torch.sigmoid(-logsnr / 2))
        if bool(logsnr.isnan().any()):
            raise ValueError("snrkit: the certificate begins at pure noise, which this model has no sigma for.")
        return torch.exp(-logsnr / 2)


def scaling_of(model) -> Scaling:
    """By the classes that ComfyUI makes a model's sampling of."""
    names = {kind.__name__ for kind in type(model.get_model_object("model_sampling")).__mro__}
    if "CONST" in names:
        return Scaling("flow")
    if "ModelSamplingContinuousEDM" in names:
        return Scaling("ve")
    if names & {"EPS", "V_PREDICTION"}:
        return Scaling("vp")
    raise ValueError(f"snrkit: models whose sampling is made of {', '.join(sorted(names))} are not known.")


def shaped(value: Tensor, x: Tensor) -> Tensor:
    """A number, or one for each image, beside states (B, ...)."""
    return value.to(x).reshape(-1, *([1] * (x.ndim - 1)))


def step_of(sigma: Tensor, options: dict) -> tuple[int, Tensor, Tensor]:
    """(The step's number, sigma and sigma' where it ends) in the schedule that is sampled."""
    schedule = options.get("transformer_options", {}).get("sample_sigmas")
    if schedule is None:
        raise ValueError("snrkit: this sampler does not say its schedule; use the sampler euler.")
    schedule, here = schedule.double().cpu(), sigma.double().cpu().flatten()[0]
    index = int((schedule[:-1] - here).abs().argmin())
    if abs(float(schedule[index] - here)) > CLOSE * max(float(here), 1e-6):
        raise ValueError("snrkit: the model is asked at a level that is not the schedule's; use the sampler euler.")
    return index, schedule[index], schedule[index + 1]


@dataclass
class Step:
    """A step of euler in snrkit's states: what was said, and where it ends."""

    index: int
    sigma: Tensor
    sigma_next: Tensor
    x: Tensor
    x0: Tensor
    scaling: Scaling

    @property
    def eps(self) -> Tensor:
        """The noise that x0 leaves in the state."""
        here = self.scaling.unit(self.sigma) * self.x
        return (here - self.scaling.alpha(self.sigma) * self.x0) / self.scaling.sigma(self.sigma)

    @property
    def x_next(self) -> Tensor:
        """Where euler goes."""
        there = self.sigma_next
        return self.scaling.alpha(there) * self.x0 + self.scaling.sigma(there) * self.eps

    def said(self, x_next: Tensor) -> Tensor:
        """What the model is to have said for euler to go there."""
        ratio = self.sigma_next / self.sigma
        return (x_next / self.scaling.unit(self.sigma_next) - ratio * self.x) / (1 - ratio)


def haar_low(x: Tensor) -> Tensor:
    """What Haar's low band alone rebuilds of x (..., H, W): means of 2x2 blocks; odd sides are padded by zeros."""
    height, width = x.shape[-2:]
    padded = torch.nn.functional.pad(x, (0, width % 2, 0, height % 2))
    blocks = padded.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))
    means = blocks.mean((-3, -1), keepdim=True).expand_as(blocks)
    return means.flatten(-2).flatten(-3, -2)[..., :height, :width]


def patched(model, make):
    """A model whose answers `make(step)` turns into other next states, for the sampler euler."""
    scaling, clone = scaling_of(model), model.clone()

    def after_guidance(args):
        sigma, x, x0 = args["sigma"], args["input"], args["denoised"]
        index, here, there = step_of(sigma, args["model_options"])
        step = Step(index, here.to(x), there.to(x), x, x0, scaling)
        return step.said(make(step))

    clone.set_model_sampler_post_cfg_function(after_guidance)
    return clone


def with_dcw(step: Step, x_next: Tensor, pixel: float, low: float, high: float) -> Tensor:
    """x' + pixel d, or x' + low L d + high (d - L d), with d = x' - x0; not on the step into the clean image."""
    if float(step.sigma_next) == 0:
        return x_next
    difference = x_next - step.x0
    if pixel:
        return x_next + pixel * difference
    smooth = haar_low(difference)
    return x_next + low * smooth + high * (difference - smooth)


class SnrkitDcw:
    """DCW in pixels, or in Haar's low and high bands, for the sampler euler."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "patch", CATEGORY

    @classmethod
    def INPUT_TYPES(cls):
        number = ("FLOAT", {"default": 0.0, "min": -1.0, "max": 1.0, "step": 0.001})
        return {"required": {"model": ("MODEL",), "pixel": number, "low": number, "high": number}}

    def patch(self, model, pixel, low, high):
        """The model with the correction; all 0 is neutral."""
        if pixel and (low or high):
            raise ValueError("snrkit DCW: pixel is low and high in one; give pixel, or low and high.")
        if not (pixel or low or high):
            return (model,)
        return (patched(model, lambda step: with_dcw(step, step.x_next, pixel, low, high)),)


class SnrkitEpsilonScaling:
    """The predicted noise divided by `scale`, the image that follows from it beside it; for any sampler."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "patch", CATEGORY

    @classmethod
    def INPUT_TYPES(cls):
        number = ("FLOAT", {"default": 1.0, "min": 0.5, "max": 2.0, "step": 0.0005})
        return {"required": {"model": ("MODEL",), "scale": number}}

    def patch(self, model, scale):
        """The model with the correction; 1 is neutral."""
        if scale == 1:
            return (model,)
        scaling, clone = scaling_of(model), model.clone()

        def after_guidance(args):
            return scaled(args["input"], args["denoised"], args["sigma"], scaling, scale)

        clone.set_model_sampler_post_cfg_function(after_guidance)
        return (clone,)


def scaled(x: Tensor, x0: Tensor, sigma: Tensor, scaling: Scaling, scale: float) -> Tensor:
    """The image that follows from eps/scale: (x - sigma eps/scale) / alpha; of pure noise the image as it is."""
    alpha, size, unit = (shaped(each(sigma), x) for each in (scaling.alpha, scaling.sigma, scaling.unit))
    eps = (unit * x - alpha * x0) / size
    moved = (unit * x - size * eps / scale) / alpha.clamp(min=torch.finfo(x.dtype).tiny)
    return torch.where(alpha == 0, x0, moved)


class SnrkitTimeShift:
    """Time shift over a window in nats, as the paper states it or as its code was released; for the sampler euler."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "patch", CATEGORY

    @classmethod
    def INPUT_TYPES(cls):
        window = ("FLOAT", {"default": 0.0, "min": 0.0, "max": 10.0, "step": 0.01})
        variance = ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.01})
        kinds = (["paper", "released"],)
        return {"required": {"model": ("MODEL",), "variant": kinds, "window": window, "data_variance": variance}}

    def patch(self, model, variant, window, data_variance):
        """The model with the correction; a window of 0 is neutral."""
        if window == 0:
            return (model,)
        scaling = scaling_of(model)
        if variant == "released":
            return (patched(model, lambda step: aimed_noisier(step, window)),)
        clone = model.clone()

        def wrapper(apply_model, args):
            x, sigma, known = args["input"], args["timestep"], args["c"]
            index, here, there = step_of(sigma, known)
            if index == 0:
                return apply_model(x, sigma, **known)
            told = nearest(x, here.to(x), scaling, window, data_variance)
            state = x * shaped(scaling.unit(here.to(x)) / scaling.unit(told), x)
            x0 = apply_model(state, told, **known)
            moved = Step(index, shaped(told, x), there.to(x), state, x0, scaling)
            return Step(index, here.to(x), there.to(x), x, x0, scaling).said(moved.x_next)

        clone.set_model_unet_function_wrapper(wrapper)
        return (clone,)


def nearest(x: Tensor, sigma: Tensor, scaling: Scaling, window: float, data_variance: float) -> Tensor:
    """The sigma (B,), of 33 levels round the nominal one, whose variance is nearest to that of each state."""
    offsets = window * torch.linspace(-0.5, 0.5, 33, dtype=torch.float64, device=x.device)
    candidates = scaling.from_logsnr(scaling.logsnr(sigma.double()) + offsets)
    nominal = scaling.alpha(candidates) ** 2 * data_variance + scaling.sigma(candidates) ** 2
    own = (x.double() * scaling.unit(sigma.double())).flatten(1).var(1, correction=0)[:, None]
    return candidates[(own - nominal).abs().argmin(1)].to(x)


def aimed_noisier(step: Step, window: float) -> Tensor:
    """The state of a step that ends half a window noisier than the level that it is then held to be at."""
    if step.index == 0 or float(step.sigma_next) == 0:
        return step.x_next
    aim = step.scaling.from_logsnr(step.scaling.logsnr(step.sigma_next.double()) - window / 2).to(step.x)
    return step.scaling.alpha(aim) * step.x0 + step.scaling.sigma(aim) * step.eps


class SnrkitCertificate:
    """What `snrkit certify` advises of a model: its sampler, for the sampler euler with SamplerCustom."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "SIGMAS", "FLOAT"), "patch", CATEGORY
    RETURN_NAMES = ("model", "sigmas", "cfg")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "path": ("STRING", {"default": "certificate.json"})}}

    def patch(self, model, path):
        """(The model with the recipe's corrections, its sigmas, the scale of its guidance)."""
        record = json.loads(Path(path).read_text())
        recipe, scaling = Recipe(record["recipe"]), scaling_of(model)
        levels = [math.nan if value is None else value for value in record["logsnr"]]
        sigmas = torch.cat([scaling.from_logsnr(torch.tensor(levels, dtype=torch.float64)), torch.zeros(1)]).float()
        recipe.sigmas = sigmas.tolist()
        return patched(model, recipe.next_state) if recipe.acts else model, sigmas, recipe.cfg


CLOSE = 1e-3  # of sigmas that are the same, relatively
PLAIN = {  # corrections that are known, and how their other options are to stand
    "cfg": {"rescale": 0, "logsnr_min": None, "logsnr_max": None, "t_min": 0, "t_max": 1},
    "dcw": {
        "schedule": {"kind": "constant"},
        "wavelet": "haar",
        "padding": "zero",
        "space": "native",
        "state": "after",
    },
    "epsilon_scaling": {"slope": 0},
    "gain": {},
}


class Recipe:
    """The sampler of a certificate: euler, with fitted steps, DCW, epsilon scaling, a gain and guidance."""

    def __init__(self, content: dict) -> None:
        definition, self.rows = content["definition"], (content["fit"] or {}).get("rows")
        solver, self.corrections, self.cfg = definition["solver"], [], 1.0
        base = solver.get("base", solver)
        if base["kind"] != "euler":
            raise ValueError(f"snrkit: the recipe's solver is {base['kind']}; certify a recipe of euler by --pipeline.")
        self.history = solver.get("history", 0) if solver["kind"] == "fitted" else None
        self.by_band = solver.get("bands") == "haar"
        for each in definition["corrections"]:
            self._take(each)
        self.past: list[Tensor] = []
        self.sigmas: list[float] = []

    def _take(self, each: dict) -> None:
        kind = each["kind"]
        if kind not in PLAIN or any(each.get(key, value) != value for key, value in PLAIN[kind].items()):
            raise ValueError(f"snrkit: this node does not know the recipe's {kind} as it is given.")
        if kind == "cfg":
            self.cfg = 1 + each["weight"]
        else:
            self.corrections.append(each)

    @property
    def acts(self) -> bool:
        """Whether it changes a step of euler."""
        return bool(self.corrections) or self.history is not None

    def next_state(self, step: Step) -> Tensor:
        """Where the recipe's step ends. ValueError where it is not one of the recipe's own."""
        own, walked = self.sigmas[step.index : step.index + 2], (float(step.sigma), float(step.sigma_next))
        if len(own) < len(walked) or any(abs(a - b) > CLOSE * max(a, b) for a, b in zip(own, walked)):
            raise ValueError(
                "snrkit: the recipe is of other sigmas; give SamplerCustom those of this node, all of them."
            )
        for each in self.corrections:
            if each["kind"] == "epsilon_scaling":
                factor = torch.as_tensor(each["scale"], dtype=step.x.dtype)
                step.x0 = scaled(step.x, step.x0, step.sigma.reshape(1), step.scaling, factor)
        x_next = step.x_next + self._fitted(step) if self.history is not None else step.x_next
        for each in self.corrections:
            if each["kind"] == "dcw":
                x_next = with_dcw(step, x_next, each["pixel"], each["low"], each["high"])
            elif each["kind"] == "gain":
                x_next = x_next + each["gain"] * x_next
        return x_next

    def _fitted(self, step: Step) -> Tensor:
        """The increments of a fitted step; predictions of earlier steps are kept from one to the next."""
        self.past = [] if step.index == 0 else self.past
        terms = [step.x0, step.eps, *self.past]
        self.past = [step.eps, *self.past][: self.history]
        if self.by_band:
            terms = [part for term in terms for low in [haar_low(term)] for part in (low, term - low)]
        row = self.rows[step.index]
        return sum((weight * term for weight, term in zip(row, terms) if weight), torch.zeros_like(step.x))


NODE_CLASS_MAPPINGS = {
    "SnrkitDcw": SnrkitDcw,
    "SnrkitEpsilonScaling": SnrkitEpsilonScaling,
    "SnrkitTimeShift": SnrkitTimeShift,
    "SnrkitCertificate": SnrkitCertificate,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "SnrkitDcw": "snrkit DCW (euler)",
    "SnrkitEpsilonScaling": "snrkit epsilon scaling",
    "SnrkitTimeShift": "snrkit time shift (euler)",
    "SnrkitCertificate": "snrkit certificate (euler)",
}
