"Oracles for diffusion, sampling and hyperldm: exact denoisers, the diffusers schedulers, loops, finite differences."

import math
from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from hyperclip_nb.core.blocks import NumbersError, Standardizer
from hyperclip_nb.core.training import TrainConfig, last, run
from hyperclip_nb.diffusion.denoisers import (
    DENOISERS,
    PUBLISHED_SIZE,
    Denoiser,
    DenoiserConfig,
    PublishedDenoiser,
    SecondPublishedDenoiser,
    planted_latents,
    timestep_embedding,
)
from hyperclip_nb.diffusion.hyperldm import (
    HyperLDM,
    LDMConfig,
    check_samples,
    question_noise,
    std_bounds,
    train_hyperldm,
)
from hyperclip_nb.diffusion.sampling import (
    SAMPLERS,
    guided_prediction,
    prepared,
    respaced,
    sample_ddim,
    sample_ddpm,
    sample_dpm,
    select_steps,
    truncated,
    with_cfg,
    with_energy,
)
from hyperclip_nb.diffusion.schedule import (
    DiffusionConfig,
    MixtureDenoiser,
    Prediction,
    Schedule,
    add_noise,
    diffusion_loss,
    drop_condition,
    make_betas,
    predicted_clean,
    prediction_target,
    weighted_square,
)

PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}  # ours -> diffusers', which has no flow
ALL_PREDICTIONS = get_args(Prediction)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def schedule_of(**options) -> Schedule:
    return Schedule.make(DiffusionConfig(**options))


class Identity:
    def encode(self, z):
        return z

    def decode(self, u):
        return u


class Affine:
    def __init__(self, mean, std):
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def encode(self, z):
        return (z - self.mean) / self.std

    def decode(self, u):
        return u * self.std + self.mean


# ---- schedules


def test_betas_equal_diffusers():
    from diffusers import DDPMScheduler

    for ours, theirs in (("linear", "linear"), ("sqrt_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")):
        reference = DDPMScheduler(350, 1e-4, 0.06, theirs).betas
        assert_close(make_betas(DiffusionConfig(schedule=ours)).float(), reference, rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(total=st.integers(1, 400), data=st.data(), spacing=st.sampled_from(["uniform", "quadratic"]))
def test_respacing(total, data, spacing):
    n = data.draw(st.integers(1, total))
    whole = schedule_of(timesteps=total, schedule=data.draw(st.sampled_from(["linear", "cosine", "sqrt_linear"])))
    part = respaced(whole, n, spacing)
    assert len(part) == n and part.timesteps[-1] == total - 1
    assert (part.timesteps.diff() > 0).all()
    assert_close(part.alpha_bars, whole.alpha_bars[part.timesteps], rtol=0, atol=0)
    assert_close((1 - part.betas).cumprod(0), part.alpha_bars)  # β recomputed from the kept ᾱ
    again = respaced(part, max(1, n // 2), spacing)  # a part of a part still knows its timesteps
    assert_close(again.alpha_bars, whole.alpha_bars[again.timesteps], rtol=0, atol=0)


def test_truncation_keeps_the_data_end():
    whole = schedule_of()
    assert [len(truncated(whole, f)) for f in (1, 0.5, 0.1, 0.01, 0.001)] == [350, 175, 35, 4, 1]
    assert truncated(whole, 0.1).timesteps.tolist() == list(range(35))


@pytest.mark.parametrize(
    "options, word",
    [
        (dict(schedule="quadratic"), "schedule"),
        (dict(prediction="noise"), "prediction"),
        (dict(timesteps=0), "timesteps"),
        (dict(timesteps=2**31), "timesteps: expected 1 to 100,000"),
        (dict(timesteps=2**63), "timesteps"),
        (dict(beta_start=0.0), "beta_start"),
        (dict(beta_start=0.1, beta_end=0.01), "beta"),
        (dict(beta_end=1.0), "beta_end"),
    ],
)
def test_bad_config(options, word):
    with pytest.raises(ValueError, match=word):
        DiffusionConfig(**options)


def test_bad_steps():
    whole = schedule_of()
    for steps in (0, 351, -1):
        with pytest.raises(ValueError, match="1 to 350"):
            respaced(whole, steps)
    with pytest.raises(ValueError, match="spacing"):
        respaced(whole, 5, "cubic")
    for fraction in (0, -0.5, 1.5):
        with pytest.raises(ValueError, match="fraction"):
            truncated(whole, fraction)
    for index in ([3, 3], [5, 2], [-1, 2], [0, 350], []):
        with pytest.raises(ValueError, match="rising"):
            select_steps(whole, torch.tensor(index, dtype=torch.long))


# ---- predictions


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 5),
    size=st.integers(1, 7),
    prediction=st.sampled_from(ALL_PREDICTIONS),
    seed=st.integers(0, 99),
)
def test_target_gives_the_clean_latent_back(batch, size, prediction, seed):
    schedule, g = schedule_of(prediction=prediction), seeded(seed)
    z0, noise = torch.randn(2, batch, size, generator=g, dtype=torch.float64)
    index = torch.randint(350, (batch,), generator=g)
    z_t = add_noise(z0, noise, schedule, index)
    clean = predicted_clean(z_t, prediction_target(z0, noise, schedule, index), schedule, index)
    assert clean.shape == z0.shape and clean.dtype == z0.dtype
    assert_close(clean, z0)


def test_forward_is_the_product_of_single_steps():
    "Variance and mean of z_t, made step by step."
    betas = make_betas(DiffusionConfig(timesteps=20))
    mean, variance = 1.0, 0.0
    for beta in betas:
        mean, variance = mean * (1 - beta) ** 0.5, (1 - beta) * variance + beta
    schedule = schedule_of(timesteps=20)
    assert_close(schedule.signal[-1], torch.as_tensor(mean))
    assert_close(schedule.std[-1] ** 2, torch.as_tensor(variance))


def test_exact_denoiser_is_the_posterior_mean():
    "Against the posterior integrated on a grid."
    schedule = schedule_of(prediction="x0")
    means, stds = torch.tensor([[-1.0], [0.7]]).double(), torch.tensor([[0.3], [0.6]]).double()
    grid = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    density = torch.distributions.Normal(means, stds).log_prob(grid).exp()  # [2, G]
    z = torch.tensor([[-2.0], [0.0], [0.4], [1.5]]).double()
    for t in (0, 30, 120, 300):
        s, σ = schedule.signal[t], schedule.std[t]
        likelihood = torch.distributions.Normal(s * grid, σ).log_prob(z).exp()
        for weights in ((1.0, 1.0), (1.0, 0.0), (0.2, 0.8)):
            posterior = likelihood * (torch.tensor(weights).double() @ density)
            reference = (posterior * grid).sum(1) / posterior.sum(1)
            out = MixtureDenoiser(means, stds, schedule)(
                z, torch.tensor(t), torch.tensor([weights]).double().expand(4, 2)
            )
            assert_close(out[:, 0], reference, rtol=1e-3, atol=1e-3)


# ---- samplers against an exact denoiser


@pytest.mark.parametrize(
    "curve, prediction",
    [
        ("linear", "epsilon"),
        ("linear", "x0"),
        ("linear", "v"),
        ("linear", "flow"),
        ("cosine", "v"),
        ("sqrt_linear", "epsilon"),
        ("straight", "flow"),
    ],
)
@pytest.mark.parametrize("sampler, steps", [("ddpm", None), ("ddpm", 35), ("ddim", None), ("ddim", 100), ("dpm", 20)])
def test_recovers_a_gaussian(prediction, curve, sampler, steps):
    schedule = schedule_of(prediction=prediction, schedule=curve)
    mean, std = (
        torch.tensor([[0.5, -0.3]]),
        torch.tensor([[1.0, 0.9]]),
    )  # the noise at the end still holds 2.5 % of the mean in sqrt_linear
    half = torch.randn(5_000, 2, generator=seeded(0))
    noise = torch.cat([half, -half])
    out = last(
        SAMPLERS[sampler](MixtureDenoiser(mean, std, schedule), noise, schedule, steps=steps, generator=seeded(1))
    )
    assert ((out.mean(0) - mean) / std).abs().max() < 0.03
    assert (out.std(0) / std - 1).abs().max() < 0.03


def test_posterior_variance_in_full_recovers_and_strided_shrinks():
    schedule = schedule_of()
    exact = MixtureDenoiser(torch.zeros(1, 1), torch.ones(1, 1), schedule)
    noise = torch.randn(20_000, 1, generator=seeded(0))
    widths = [
        last(sample_ddpm(exact, noise, schedule, steps=n, variance="posterior", generator=seeded(1))).std()
        for n in (None, 35)
    ]
    assert abs(widths[0] - 1) < 0.03 and 0.85 < widths[1] < 0.93  # the analytic value is 0.898


def test_recovers_a_mixture():
    schedule = schedule_of(schedule="cosine", prediction="v")
    means, stds = torch.tensor([[-1.2], [0.9]]), torch.tensor([[0.2], [0.3]])
    exact, noise = MixtureDenoiser(means, stds, schedule), torch.randn(10_000, 1, generator=seeded(2))
    for sampler in (sample_ddpm, sample_ddim, sample_dpm):
        out = last(sampler(exact, noise, schedule, steps=150, generator=seeded(3)))
        for k, part in enumerate((out[out < -0.3], out[out >= -0.3])):
            assert abs(len(part) / len(out) - 0.5) < 0.02
            assert abs(part.mean() - means[k, 0]) < 0.02 and abs(part.std() / stds[k, 0] - 1) < 0.06


# ---- samplers against diffusers, on the same noise and model output


def model(z, t):
    "Any function of the latent and the timestep."
    return torch.sin(2 * z) * 0.8 + 0.3 * z - 0.001 * float(t)


def diffusers_path(scheduler, timesteps, noise, seed, **options):
    z, path, generator = noise, [noise], seeded(seed)
    for t in timesteps:
        z = scheduler.step(model(z, t), t, z, generator=generator, **options).prev_sample
        path.append(z)
    return torch.stack(path)


NOISE = torch.randn(4, 6, generator=seeded(11))


@pytest.mark.parametrize("steps", [350, 50, 35])
@pytest.mark.parametrize("variance, theirs", [("posterior", "fixed_small"), ("beta", "fixed_large")])
@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
def test_ddpm_equals_diffusers(steps, variance, theirs, prediction):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        350, 1e-4, 0.06, "linear", clip_sample=False, variance_type=theirs, prediction_type=PREDICTIONS[prediction]
    )
    scheduler.set_timesteps(steps)
    reference = diffusers_path(scheduler, scheduler.timesteps, NOISE, 5)
    part = select_steps(schedule_of(prediction=prediction), scheduler.timesteps.flip(0))
    ours = torch.stack([*sample_ddpm(model, NOISE, part, variance=variance, generator=seeded(5))])
    assert ours.shape == (steps + 1, 4, 6)
    assert_close(ours, reference, rtol=1e-3, atol=1e-3 * float(reference.abs().max()))


@pytest.mark.parametrize("steps", [350, 50, 7])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
def test_ddim_equals_diffusers(steps, eta, prediction):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        350,
        1e-4,
        0.06,
        "linear",
        clip_sample=False,
        prediction_type=PREDICTIONS[prediction],
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    reference = diffusers_path(scheduler, scheduler.timesteps, NOISE, 6, eta=eta)
    whole = schedule_of(prediction=prediction)
    assert respaced(whole, steps).timesteps.tolist() == scheduler.timesteps.flip(0).tolist()
    ours = torch.stack(
        [*sample_ddim(model, NOISE, whole, steps=steps, spacing="uniform", eta=eta, generator=seeded(6))]
    )
    assert_close(ours, reference, rtol=1e-3, atol=1e-3 * float(reference.abs().max()))


@pytest.mark.parametrize("steps", [40, 10, 5, 2, 1])
@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
def test_dpm_equals_diffusers(steps, prediction):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        350,
        1e-4,
        0.06,
        "linear",
        prediction_type=PREDICTIONS[prediction],
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    whole = schedule_of(prediction=prediction)
    scheduler.set_timesteps(timesteps=respaced(whole, steps, "quadratic").timesteps.flip(0).tolist())
    reference = diffusers_path(scheduler, scheduler.timesteps, NOISE, 0)
    ours = torch.stack([*sample_dpm(model, NOISE, whole, steps=steps)])
    assert_close(ours, reference, rtol=1e-3, atol=1e-3 * float(reference.abs().max()))


def test_clamp_equals_diffusers():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(350, 1e-4, 0.06, "linear", clip_sample=True, clip_sample_range=1.5)
    reference = diffusers_path(scheduler, scheduler.timesteps, NOISE, 5)
    ours = torch.stack(
        [*sample_ddpm(model, NOISE, schedule_of(), variance="posterior", clamp=1.5, generator=seeded(5))]
    )
    assert_close(ours, reference, rtol=1e-3, atol=1e-3)
    assert ours[-1].abs().max() <= 1.5


def test_ddim_with_all_noise_is_ddpm():
    "Two formulas for one step: in double precision they agree to its last digits."
    for steps in (None, 20):
        schedule, noise = respaced(schedule_of(), steps), NOISE.double()
        one = torch.stack([*sample_ddim(model, noise, schedule, eta=1.0, generator=seeded(1))])
        two = torch.stack([*sample_ddpm(model, noise, schedule, variance="posterior", generator=seeded(1))])
        assert_close(one, two, rtol=1e-10, atol=1e-10 * float(two.abs().max()))


@pytest.mark.parametrize("prediction", ALL_PREDICTIONS)
def test_ddpm_is_the_papers_line(prediction):
    "Algorithm 14 with the noise that the prediction implies, step after step, on the same fresh noise."
    schedule, draw = schedule_of(prediction=prediction, timesteps=60, beta_end=0.2), seeded(4)
    z, by_hand = NOISE.double(), [NOISE.double()]
    for i in reversed(range(60)):
        t, beta, kept = torch.tensor(i), schedule.betas[i], schedule.alpha_bars[i]
        clean = predicted_clean(z, model(z, t), schedule, i)
        ε = (z - kept.sqrt() * clean) / (1 - kept).sqrt()
        z = (z - beta / (1 - kept).sqrt() * ε) / (1 - beta).sqrt()
        if i > 0:
            z = z + beta.sqrt() * torch.randn(z.shape, generator=draw, dtype=z.dtype)
        by_hand.append(z)
    ours = torch.stack([*sample_ddpm(model, NOISE.double(), schedule, generator=seeded(4))])
    assert_close(ours, torch.stack(by_hand), rtol=1e-9, atol=1e-9)


def test_seeds():
    schedule, options = schedule_of(), dict(steps=20)
    a, b, c = (last(sample_ddpm(model, NOISE, schedule, generator=seeded(s), **options)) for s in (1, 1, 2))
    assert_close(a, b, rtol=0, atol=0)
    assert (a - c).abs().max() > 0.01
    before = torch.random.get_rng_state()
    assert_close(
        last(sample_ddim(model, NOISE, schedule, **options)),
        last(sample_ddim(model, NOISE, schedule, **options)),
        rtol=0,
        atol=0,
    )
    assert torch.equal(before, torch.random.get_rng_state())  # nothing drawn from the global generator
    for sampler in (
        lambda: sample_ddpm(model, NOISE, schedule, generator=None),
        lambda: sample_ddim(model, NOISE, schedule, eta=0.3),
    ):
        with pytest.raises(ValueError, match="torch.Generator"):
            last(sampler())


def test_walk_leaves_the_callers_noise_alone():
    noise = NOISE.clone()
    path = [z.clone() for z in sample_dpm(model, noise, schedule_of(), steps=6, clamp=1.0)]
    again = [*sample_dpm(model, noise, schedule_of(), steps=6, clamp=1.0)]
    assert torch.equal(noise, NOISE)
    assert all(torch.equal(a, b) for a, b in zip(path, again))  # what was yielded is not changed afterwards


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 4),
    size=st.integers(1, 5),
    steps=st.integers(1, 30),
    sampler=st.sampled_from(sorted(SAMPLERS)),
    curve=st.sampled_from(["linear", "cosine"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_paths_have_their_shape(batch, size, steps, sampler, curve, dtype):
    schedule = schedule_of(timesteps=30, schedule=curve, prediction="v")
    noise = torch.randn(batch, size, generator=seeded(0), dtype=dtype)
    path = [*SAMPLERS[sampler](model, noise, schedule, steps=steps, generator=seeded(0), clamp=3.0)]
    assert len(path) == steps + 1 and path[0] is noise
    assert all(z.shape == noise.shape and z.dtype == dtype and z.isfinite().all() for z in path)


def test_walk_from_a_noised_latent_keeps_the_distribution():
    schedule = schedule_of()
    mean, std = torch.tensor([[0.5]]), torch.tensor([[0.4]])
    known = mean + std * torch.randn(20_000, 1, generator=seeded(0))
    part = truncated(schedule, 0.1)
    noised = add_noise(known, torch.randn(20_000, 1, generator=seeded(1)), part, len(part) - 1)
    out = last(sample_ddpm(MixtureDenoiser(mean, std, schedule), noised, part, generator=seeded(2)))
    assert abs(out.mean() - 0.5) < 0.02 and abs(out.std() / 0.4 - 1) < 0.03
    assert torch.corrcoef(torch.cat([out, known], 1).T)[0, 1] > 0.3  # not drawn anew


@pytest.mark.parametrize("gamma", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("steps", [1, 5, 10, 350])
def test_flow_is_integrated_by_euler(steps, gamma):
    "DDIM in the units of the straight line x = (1 − τ) z0 + τ ε is Euler's method on dx/dτ = û, guidance included."
    schedule = schedule_of(schedule="straight", prediction="flow")
    part, e = respaced(schedule, steps), torch.eye(3).double()
    exact = MixtureDenoiser(CLUSTERS.double(), torch.full((3, 2), 0.4).double(), schedule)
    τ, scale = part.std / (part.signal + part.std), part.signal + part.std
    assert_close(τ, (part.timesteps + 0.5).double() / 350)
    z = torch.randn(3, 2, generator=seeded(0)).double()
    x = z / scale[-1]
    for i in reversed(range(steps)):
        without, given = (exact(scale[i] * x, part.timesteps[i], c) for c in (None, e))
        x = x + ((τ[i - 1] if i else 0) - τ[i]) * ((1 - gamma) * without + gamma * given)
    ours = last(sample_ddim(with_cfg(exact, e, gamma), z, schedule, steps=steps, spacing="uniform"))
    assert_close(ours, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "sampler, steps, narrower", [("ddim", 5, 0.5), ("ddim", 10, 0.25), ("dpm", 5, 0.15), ("dpm", 10, 0.1)]
)
def test_flow_with_few_steps(sampler, steps, narrower):
    "Five steps of Euler find the mean; for the standard deviation, five steps of second order do."
    schedule = schedule_of(schedule="straight", prediction="flow")
    mean, std = torch.tensor([[1.2, -0.7, 0.1]]), torch.tensor([[0.2, 0.5, 1.0]])
    half, spacing = torch.randn(5_000, 3, generator=seeded(0)), {"ddim": "uniform", "dpm": "quadratic"}[sampler]
    exact, noise = MixtureDenoiser(mean, std, schedule), torch.cat([half, -half])
    out = last(SAMPLERS[sampler](exact, noise, schedule, steps=steps, spacing=spacing))
    assert (out.mean(0) - mean).abs().max() < 0.01 and (out.std(0) / std - 1).abs().max() < narrower


def test_the_straight_curve_is_even_in_τ_for_any_number_of_steps():
    for total in (1, 2, 350):
        schedule = schedule_of(schedule="straight", prediction="flow", timesteps=total)
        τ = schedule.std / (schedule.signal + schedule.std)
        assert_close(τ, (torch.arange(total, dtype=torch.float64) + 0.5) / total)


# ---- guidance

CLUSTERS = torch.tensor([[1.0, 0.2], [-0.8, 0.5], [0.1, -1.1]])


def test_cfg_identities_and_calls():
    schedule = schedule_of()
    exact, calls = MixtureDenoiser(CLUSTERS, torch.full((3, 2), 0.4), schedule), []

    def denoiser(z, t, e):
        calls.append(tuple(z.shape))
        return exact(z, t, e)

    z, e = torch.randn(3, 2, generator=seeded(0)), torch.eye(3)
    for t in (torch.tensor(50), torch.tensor([10, 200, 349])):
        calls.clear()
        assert torch.equal(with_cfg(denoiser, e, 1.0)(z, t), exact(z, t, e))
        assert torch.equal(with_cfg(denoiser, e, 0.0)(z, t), exact(z, t, torch.zeros(3, 3)))
        for gamma in (0.5, 1.5, 4.0, -1.0):
            assert_close(
                with_cfg(denoiser, e, gamma)(z, t),
                (1 - gamma) * exact(z, t) + gamma * exact(z, t, e),
                rtol=1e-4,
                atol=1e-5,
            )
        assert calls == [(3, 2)] * 2 + [(6, 2)] * 4


def test_guidance_means_the_same_for_every_prediction():
    "CFG and every energy rule, as the clean latent they imply."
    z, t, e = torch.randn(3, 2, generator=seeded(0)).double(), torch.tensor(90), torch.eye(3).double()
    energy = lambda x: (x - 0.3).pow(2).sum(-1) + x[:, 0].pow(4)
    for rule in (None, "direct", "through", "rescaled", "published"):
        cleans = []
        for prediction in ALL_PREDICTIONS:
            schedule = schedule_of(prediction=prediction)
            denoise = with_cfg(MixtureDenoiser(CLUSTERS.double(), torch.full((3, 2), 0.4).double(), schedule), e, 1.7)
            if rule:
                denoise = with_energy(denoise, energy, 0.7, schedule, rule)
            cleans.append(predicted_clean(z, denoise(z, t), schedule, t))
        for clean in cleans[1:]:
            assert_close(cleans[0], clean, rtol=1e-8, atol=1e-8)


def test_energy_gradient_equals_finite_difference():
    schedule, h = schedule_of(), 1e-5
    exact = MixtureDenoiser(CLUSTERS.double(), torch.full((3, 2), 0.4).double(), schedule)
    energy = lambda x: (x - 0.3).pow(2).sum(-1) + x[:, 0].pow(4)
    z, t = torch.randn(3, 2, generator=seeded(0)).double(), torch.tensor(60)
    s, σ = schedule.signal[60], schedule.std[60]
    clean = lambda x: predicted_clean(x, exact(x, t), schedule, t)

    def difference(f, at):
        out = torch.empty_like(at)
        for j in range(at.shape[1]):
            step = torch.zeros_like(at)
            step[:, j] = h
            out[:, j] = (f(at + step) - f(at - step)) / (2 * h)
        return out

    shift = {
        rule: with_energy(exact, energy, 0.7, schedule, rule)(z, t) - exact(z, t)
        for rule in ("direct", "through", "rescaled", "published")
    }
    at_clean, at_noisy = difference(energy, clean(z)), difference(energy, z)
    assert_close(shift["direct"], 0.7 * s * σ * at_clean, rtol=1e-6, atol=1e-7)
    assert_close(shift["through"], 0.7 * σ * difference(lambda x: energy(clean(x)), z), rtol=1e-6, atol=1e-7)
    length = exact(z, t).norm(dim=1, keepdim=True)
    assert_close(shift["rescaled"], 0.7 * length * at_clean / at_clean.norm(dim=1, keepdim=True), rtol=1e-6, atol=1e-7)
    assert_close(shift["published"], 0.7 * length * at_noisy / at_noisy.norm(dim=1, keepdim=True), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", ["direct", "through"])
def test_linear_energy_shifts_a_gaussian(rule):
    schedule = schedule_of()
    exact = MixtureDenoiser(torch.zeros(1, 2), torch.ones(1, 2), schedule)
    denoise = with_energy(exact, lambda z: -1.5 * z[:, 0], 1.0, schedule, rule)
    out = last(
        sample_ddpm(denoise, torch.randn(10_000, 2, generator=seeded(0)), schedule, steps=150, generator=seeded(1))
    )
    assert (out.mean(0) - torch.tensor([1.5, 0.0])).abs().max() < 0.03 and (out.std(0) - 1).abs().max() < 0.03


def test_energy_asks_for_the_prepared_form_of_what_it_wraps():
    schedule, visited = schedule_of(), []

    class Counting:
        def __call__(self, z, t):
            raise AssertionError("expected the form for the sampler's steps")

        def for_steps(self, timesteps):
            visited.append(timesteps.tolist())
            return model

    denoise = with_energy(Counting(), lambda z: z.square().sum(-1), 0.1, schedule)
    plain = with_energy(model, lambda z: z.square().sum(-1), 0.1, schedule)
    ours, theirs = (last(sample_ddim(d, NOISE, schedule, steps=6)) for d in (denoise, plain))
    assert torch.equal(ours, theirs) and visited == [respaced(schedule, 6, "quadratic").timesteps.tolist()]


def test_energy_refusals():
    schedule = schedule_of()
    with pytest.raises(ValueError, match="rule"):
        with_energy(model, lambda z: z.sum(-1), 1.0, schedule, "other")
    with pytest.raises(ValueError, match="whole training schedule"):
        with_energy(model, lambda z: z.sum(-1), 1.0, respaced(schedule, 20))


# ---- the loss


def test_weighted_square_equals_a_loop():
    g = seeded(0)
    error, root = torch.randn(5, 4, generator=g), torch.randn(5, 4, 4, generator=g)
    weight = root @ root.mT
    loop = sum(float(d @ H @ d / H.diagonal().sum()) for d, H in zip(error, weight)) / 5
    assert_close(float(weighted_square(error, weight)), loop)
    assert_close(weighted_square(error, 3 * torch.eye(4).expand(5, 4, 4)), error.square().mean())
    with pytest.raises(ValueError, match=r"\[B, Z, Z\]"):
        weighted_square(error, weight[:1])
    with pytest.raises(ValueError, match="row 2"):
        weighted_square(error, weight * torch.tensor([1, 1, 0, 1, 1.0])[:, None, None])


def test_loss_equals_a_loop():
    "Redraw what the loss draws, and compute it row by row."
    for prediction in ALL_PREDICTIONS:
        schedule, g = schedule_of(prediction=prediction), seeded(3)
        z0, e = torch.randn(6, 2, generator=seeded(0)), torch.randn(6, 3, generator=seeded(1))
        denoiser = lambda z, t, e: torch.tanh(z + e[:, :2]) - 0.01 * t[:, None]
        t, noise = torch.randint(350, (6,), generator=g), torch.randn(6, 2, generator=g)
        dropped = torch.rand(6, 1, generator=g)[:, 0] < 0.5
        assert 0 < dropped.sum() < 6
        total = 0.0
        for i in range(6):
            s, σ = schedule.alpha_bars[t[i]].sqrt().float(), (1 - schedule.alpha_bars[t[i]]).sqrt().float()
            z = s * z0[i] + σ * noise[i]
            out = torch.tanh(z + (0 if dropped[i] else e[i, :2])) - 0.01 * t[i]
            v, u = s * noise[i] - σ * z0[i], noise[i] - z0[i]
            total += (out - {"epsilon": noise[i], "x0": z0[i], "v": v, "flow": u}[prediction]).square().mean() / 6
        assert_close(diffusion_loss(denoiser, z0, e, schedule, seeded(3), drop=0.5), total)


def test_drop_condition():
    e = torch.randn(20_000, 3, generator=seeded(0))
    dropped = (drop_condition(model, e, 0.2, seeded(1)) == 0).all(1)
    assert abs(dropped.float().mean() - 0.2) < 0.01
    assert torch.equal(drop_condition(model, e, 0.0, seeded(1)), e)
    learned = Denoiser(2, 3, DenoiserConfig(hidden=8, null="learned"))
    diffusion_loss(learned, torch.randn(64, 2, generator=seeded(2)), e[:64], schedule_of(), seeded(3)).backward()
    assert learned.null.grad.abs().sum() > 0


# ---- the denoiser


@settings(deadline=None, max_examples=25)
@given(
    size=st.integers(1, 6),
    embed=st.integers(1, 6),
    tasks=st.integers(1, 4),
    samples=st.integers(1, 3),
    depth=st.integers(1, 3),
    tower=st.integers(0, 2),
    null=st.sampled_from(["zero", "learned"]),
    kind=st.sampled_from([*DENOISERS.values()]),
    gamma=st.sampled_from([0, 1, 1.5, 4]),
    seed=st.integers(0, 5),
)
def test_fast_path_equals_plain(size, embed, tasks, samples, depth, tower, null, kind, gamma, seed):
    config = DenoiserConfig(hidden=8, depth=depth, tower=tower, time_size=6, null=null, dropout=0.3)
    denoiser = kind(size, embed, config, seed).eval()
    if null == "learned":
        denoiser.null.data.normal_(generator=seeded(seed))
    g = seeded(seed)
    z, e = torch.randn(samples, tasks, size, generator=g), torch.randn(tasks, embed, generator=g)
    part = respaced(schedule_of(), 5)
    with torch.no_grad():
        fast = with_cfg(denoiser, e, gamma)
        assert prepared(fast, part) is not fast
        for t in part.timesteps:
            plain = torch.stack([guided_prediction(denoiser, x, t, e, gamma) for x in z])
            for out in (fast(z, t), prepared(fast, part)(z, t)):
                assert out.shape == z.shape
                assert_close(out, plain, rtol=1e-4, atol=1e-5)
            assert_close(denoiser(z[0], t.expand(tasks), e), denoiser(z[0], t, e), rtol=1e-5, atol=1e-6)


def test_denoiser_is_seeded_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    a, b, c = (Denoiser(3, 4, DenoiserConfig(hidden=8), seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.head.weight, c.head.weight)


def test_published_denoiser_equals_concatenation():
    "The published network written plainly: concatenate, linear, norm, ReLU."
    net = PublishedDenoiser(5, 7, PUBLISHED_SIZE)
    z, e, t = torch.randn(3, 5, generator=seeded(0)), torch.randn(3, 7, generator=seeded(1)), torch.tensor([0, 9, 349])
    h = torch.cat([z, e, timestep_embedding(t, 100)], 1)
    joint = torch.cat([net.from_latent.weight, net.from_embedding.weight, net.from_time.weight], 1)
    h = torch.relu(net.norms[0](torch.nn.functional.linear(h, joint, net.from_time.bias)))
    h = torch.relu(net.norms[1](net.layers[0](h)))
    assert_close(net(z, t, e), net.head(h), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in net.parameters()) == (5 + 7 + 100 + 1) * 128 + 129 * 128 + 4 * 128 + 129 * 5


def test_second_published_denoiser_equals_concatenation():
    "Every block reads [h, e, τ], and a linear path leads past its norm."
    net = SecondPublishedDenoiser(5, 7, DenoiserConfig(hidden=16, depth=3, time_size=10))
    z, e, t = torch.randn(3, 5, generator=seeded(0)), torch.randn(3, 7, generator=seeded(1)), torch.tensor([0, 9, 349])
    h, τ = z, timestep_embedding(t, 10)
    for k in range(3):
        rows = slice(16 * k, 16 * (k + 1))
        joint = [net.layers[k].weight, net.from_embedding.weight[rows], net.from_time.weight[rows]]
        inner = torch.nn.functional.linear(torch.cat([h, e, τ], 1), torch.cat(joint, 1), net.from_time.bias[rows])
        h = torch.relu(net.norms[k](inner)) + h @ net.paths[k].weight.T
    assert_close(net(z, t, e), net.head(h), rtol=1e-4, atol=1e-5)
    blocks = [(n + 7 + 10 + 1) * 16 + n * 16 + 2 * 16 for n in (5, 16, 16)]
    assert sum(p.numel() for p in net.parameters()) == sum(blocks) + 17 * 5


def test_the_second_published_denoiser_follows_any_length():
    "The first one's output is bounded, however long its input; the second one's grows in proportion."
    z, t = torch.randn(64, 6, generator=seeded(0)), torch.tensor(5)
    for kind, bounded in (PublishedDenoiser, True), (SecondPublishedDenoiser, False):
        net = kind(6, 4, DenoiserConfig(hidden=32, depth=2)).requires_grad_(False)
        growth = net(1e4 * z, t).norm() / net(1e3 * z, t).norm()
        assert growth < 1.1 if bounded else growth > 9


@pytest.mark.parametrize(
    "options", [dict(hidden=0), dict(depth=0), dict(time_size=3), dict(dropout=1.0), dict(null="mean"), dict(tower=-1)]
)
def test_bad_denoiser(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DenoiserConfig(**options)


# ---- HyperLDM

KINDS = torch.randn(3, 4, generator=seeded(21))
CENTRES = torch.tensor([[4.0, -1.0], [2.0, 1.0], [0.0, -1.5]])


def problem(n=120, views=3):
    kind = torch.arange(n) % 3
    embeddings = KINDS[kind] + 0.1 * torch.randn(n, 4, generator=seeded(22))
    return CENTRES[kind] + 0.3 * torch.randn(views, n, 2, generator=seeded(23)), embeddings


def untrained(prediction="epsilon", kind=Denoiser, **options):
    return HyperLDM.make(
        4,
        2,
        Affine([2.0, -0.5], [1.7, 1.1]),
        DiffusionConfig(prediction=prediction, timesteps=100, beta_end=0.2),
        DenoiserConfig(hidden=48, depth=2, **options),
        kind,
    )


@pytest.mark.parametrize(
    "prediction, kind",
    [("epsilon", Denoiser), ("v", Denoiser), ("flow", Denoiser), ("epsilon", SecondPublishedDenoiser)],
)
def test_training_recovers_the_conditional_means(prediction, kind):
    ldm = untrained(prediction, kind)
    losses = run(train_hyperldm(ldm, *problem(), TrainConfig(steps=500, lr=5e-3, schedule="cosine")))
    assert sum(losses[-50:]) < 0.75 * sum(losses[:50])
    out = ldm.generate(KINDS, generator=seeded(0), samples=200)
    assert out.shape == (200, 3, 2)
    assert (out.mean(0) - CENTRES).abs().max() < 0.2
    assert 0.2 < out.std(0).mean() < 0.45
    blind = ldm.generate(KINDS, generator=seeded(0), samples=200, gamma=0)
    assert (blind.mean(0) - CENTRES.mean(0)).abs().max() < 0.6  # without the question: the middle of all


def test_training_is_reproducible_and_resumes():
    def weights(ldm):
        return torch.cat([p.flatten() for p in ldm.denoiser.parameters()])

    config, train = LDMConfig(batch=16, embedding_noise=0.2, ema_from=0.3), TrainConfig(steps=12, seed=4)
    whole, twin, other = untrained(dropout=0.2), untrained(dropout=0.2), untrained(dropout=0.2)
    a = run(train_hyperldm(whole, *problem(), train, config))
    b = run(train_hyperldm(twin, *problem(), train, config))
    c = run(train_hyperldm(other, *problem(), TrainConfig(steps=12, seed=5), config))
    assert a == b and a != c and torch.equal(weights(whole), weights(twin))
    half = untrained(dropout=0.2)
    updates = train_hyperldm(half, *problem(), train, config)
    for _ in range(5):
        next(updates)
    state = {k: v.clone() for k, v in updates.state_dict().items()}
    resumed = untrained(dropout=0.2)
    updates = train_hyperldm(resumed, *problem(), train, config)
    updates.load_state_dict(state)
    assert run(updates) == a[5:]
    assert torch.equal(weights(resumed), weights(whole))


def test_the_average_is_what_is_sampled():
    ldm = untrained()
    first = ldm.denoiser
    updates = train_hyperldm(
        ldm, *problem(), TrainConfig(steps=20, lr=1e-2), LDMConfig(batch=8, ema_decay=1.0, ema_from=0.5)
    )
    student, seen = updates.model, []
    for update in updates:
        if update.step > 10:
            seen.append(student.head.weight.detach().clone())
    assert ldm.denoiser is not first and ldm.denoiser is not student
    assert_close(ldm.denoiser.head.weight, torch.stack(seen).mean(0), rtol=1e-4, atol=1e-6)
    assert not ldm.denoiser.training


def test_generate_is_the_plain_sampler_decoded():
    ldm = untrained()
    e = torch.randn(5, 4, generator=seeded(0))
    plain_of = lambda z, t, e: ldm.denoiser(z, t, e)  # without a fast form
    for name, gamma, options in (
        ("ddpm", 1.5, dict(steps=20)),
        ("ddim", 1, dict(steps=10, eta=0.5)),
        ("dpm", 0, dict(steps=8)),
    ):
        out = ldm.generate(e, generator=seeded(7), gamma=gamma, sampler=name, samples=2, check=False, **options)
        g = seeded(7)
        noise = torch.randn(2, 5, 2, generator=g).view(10, 2)
        with torch.no_grad():
            plain = last(
                SAMPLERS[name](with_cfg(plain_of, e.repeat(2, 1), gamma), noise, ldm.schedule, generator=g, **options)
            )
        assert_close(out, ldm.standardizer.decode(plain).view(2, 5, 2), rtol=1e-3, atol=1e-3)
    assert ldm.generate(e[:0], generator=seeded(7), steps=6).shape == (1, 0, 2)
    path = [*ldm.trajectory(e, generator=seeded(7), steps=6, check=False)]
    assert len(path) == 7 and path[0].shape == (1, 5, 2)
    assert_close(path[-1], ldm.generate(e, generator=seeded(7), steps=6, check=False))


def test_energy_and_start_are_in_the_generators_space():
    ldm = untrained()
    e, seen = torch.randn(5, 4, generator=seeded(0)), []

    def energy(z):
        seen.append(z.detach().clone())
        return (z - 10).square().sum(-1)

    how = dict(samples=3, steps=5, sampler="ddim")
    out = ldm.generate(e, generator=seeded(1), energy=energy, energy_scale=0.0, **how)
    assert_close(out, ldm.generate(e, generator=seeded(1), check=False, **how), rtol=1e-4, atol=1e-4)
    assert len(seen) == 5 * 3 and all(
        z.shape == (5, 2) for z in seen
    )  # one call per step and sample, each with all tasks
    with torch.no_grad():
        noisy = ldm.standardizer.encode(torch.tensor([2.0, 1.0])).expand(3, 5, 2)
        part = truncated(ldm.schedule, 0.02)
        g = seeded(2)
        first = add_noise(noisy, torch.randn(3, 5, 2, generator=g), part, len(part) - 1)
    path = [*ldm.path(e, generator=seeded(2), samples=3, start=torch.tensor([2.0, 1.0]), fraction=0.02)]
    assert len(path) == len(part) + 1 == 3
    assert_close(path[0], first)


def test_posterior_draws_are_new_at_every_step_and_repeat_with_the_seed():
    "Algorithm 13: means and standard deviations go in; what is encoded is drawn from them anew, by the step's seed."
    latents, embeddings = problem(views=3)
    std = torch.rand(latents.shape, generator=seeded(30)) + 0.5

    class Recording(Identity):
        def __init__(self):
            self.seen = []

        def encode(self, z):
            self.seen.append(z)
            return z

    def drawn(std, seed=0, latents=latents, resume=None, steps=40):
        ldm = HyperLDM.make(4, 2, Recording(), denoiser=DenoiserConfig(hidden=8, depth=1))
        updates = train_hyperldm(ldm, latents, embeddings, TrainConfig(steps=steps, seed=seed), std=std)
        if resume is not None:
            updates.load_state_dict(resume)
        run(updates)
        return torch.stack(ldm.standardizer.seen), updates.state_dict()

    zero = torch.zeros_like(latents)
    units = drawn(torch.ones_like(std), latents=zero)[0]  # [steps, B, Z]: what was drawn for each step
    assert abs(units.mean()) < 0.03 and abs(units.std() - 1) < 0.03
    assert len(units.flatten(0, 1).unique(dim=0)) == units.shape[0] * units.shape[1]  # no draw comes again
    a, b, c = drawn(std)[0], drawn(std)[0], drawn(std, seed=1)[0]
    assert torch.equal(a, b) and not torch.equal(a, c)
    which, of_std = drawn(None)[0], drawn(zero, latents=std)[0]  # the same tasks and views, and the std of each
    assert_close(a, which + of_std * units)
    assert_close(drawn(std[0])[0], drawn(std[:1].expand(3, -1, -1))[0])
    half = drawn(std, steps=40)[0][:15]
    state = train_hyperldm(
        HyperLDM.make(4, 2, Recording(), denoiser=DenoiserConfig(hidden=8, depth=1)),
        latents,
        embeddings,
        TrainConfig(steps=40),
        std=std,
    )
    for _ in range(15):
        next(state)
    assert torch.equal(torch.cat([half, drawn(std, resume=state.state_dict())[0]]), a)
    for wrong in (std[:2], std[..., :1], -std, std * math.nan):
        with pytest.raises(ValueError, match="std"):
            train_hyperldm(untrained(), latents, embeddings, std=wrong)


def test_curvature_is_brought_to_the_diffusions_space():
    "A curvature D^-1 D^-1 / 3 in the generator's space is the identity, up to scale, in the diffusion's."
    latents, embeddings = problem()
    std = torch.tensor([1.7, 1.1])
    curvature = torch.diag(std**-2 / 3).expand(3, 120, 2, 2)
    plain, weighted = (
        run(train_hyperldm(untrained(), latents, embeddings, TrainConfig(steps=3), curvature=m))
        for m in (None, curvature)
    )
    assert_close(torch.tensor(plain), torch.tensor(weighted), rtol=1e-4, atol=1e-5)
    other = run(
        train_hyperldm(
            untrained(), latents, embeddings, TrainConfig(steps=3), curvature=torch.diag(std**2).expand(120, 2, 2)
        )
    )
    assert not math.isclose(plain[0], other[0], rel_tol=1e-3)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda z, e: (z[:, :-1], e), "latents"),
        (lambda z, e: (z[..., :1], e), "latents"),
        (lambda z, e: (z, e[:, :2]), "embeddings"),
        (lambda z, e: (z, e.index_fill(0, torch.tensor([3]), math.nan)), "finite"),
        (lambda z, e: (z * math.inf, e), "finite"),
    ],
)
def test_bad_pairs(change, word):
    with pytest.raises(ValueError, match=word):
        train_hyperldm(untrained(), *change(*problem()))


def test_bad_requests():
    ldm, e, options = untrained(), torch.randn(2, 4), dict(generator=seeded(0))
    for call, word in (
        (lambda: ldm.generate(e[:, :3], **options), r"\[T, 4\]"),
        (lambda: ldm.generate(e, sampler="euler", **options), "sampler"),
        (lambda: ldm.generate(e, steps=101, **options), "1 to 100"),
        (lambda: ldm.generate(e, fraction=0.5, **options), "fraction"),
        (lambda: LDMConfig(drop=1.5), "drop"),
        (lambda: LDMConfig(ema_from=1.0), "ema_from"),
    ):
        with pytest.raises(ValueError, match=word):
            call()


@pytest.mark.parametrize(
    "sampler, name, values",
    [
        *[(sampler, "clamp", [0.0, -1.0, math.nan]) for sampler in SAMPLERS],
        ("ddpm", "temperature", [-1.0, math.inf, math.nan]),
        ("ddim", "eta", [-0.1, 1.1, math.inf, math.nan]),
    ],
)
def test_numbers_that_mean_nothing_are_refused_by_every_sampler(sampler, name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{name}: expected .*, got {value}"):
            next(SAMPLERS[sampler](model, NOISE, schedule_of(), generator=seeded(0), **{name: value}))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("gamma", [0, 1, 1.5])
@pytest.mark.parametrize("shape", [(2, 5), (3, 2, 7), (2, 0), (1,)])
def test_noise_of_another_size_is_refused(sampler, gamma, shape):
    ldm = untrained()
    denoise = with_cfg(ldm.denoiser, torch.randn(2, 4), gamma)
    with pytest.raises(ValueError, match=r"expected latents \[..., 2\], got"):
        list(SAMPLERS[sampler](denoise, torch.randn(shape), ldm.schedule, generator=seeded(0), steps=3))


def test_one_view_and_several_are_the_same_thing():
    latents, embeddings = problem(views=1)
    a, b = (run(train_hyperldm(untrained(), z, embeddings, TrainConfig(steps=3))) for z in (latents, latents[0]))
    assert a == b


@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("conditions", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_samples_have_the_type_of_the_denoiser(weights, conditions, gamma):
    ldm = HyperLDM.make(4, 6, Standardizer(torch.randn(20, 6, generator=seeded(0))))
    e = torch.randn(2, 4, generator=seeded(1))
    single = ldm.generate(e, generator=seeded(2), gamma=gamma, steps=5, check=False)
    ldm.denoiser.to(weights), ldm.standardizer.to(weights)
    z = ldm.generate(e.to(conditions), generator=seeded(2), gamma=gamma, steps=5, check=False)
    assert z.dtype == weights and z.shape == single.shape and z.isfinite().all()


# ---- samples that cannot be right


@settings(deadline=None, max_examples=300)
@given(
    samples=st.integers(1, 10),
    tasks=st.sampled_from([1, 2, 3, 4, 5, 6, 10, 40, 60, 100, 300]),
    size=st.sampled_from([1, 2, 16, 128]),
    rank_one=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_right_samples_are_never_refused(samples, tasks, size, rank_one, seed):
    "Standard normal latents, however few: also where all numbers of a question say the same."
    g = seeded(seed)
    u = torch.randn(samples, tasks, size, generator=g)
    if rank_one:
        u = u[:1, :, :1].expand(u.shape)
    check_samples(u, torch.randn(tasks, 3, generator=g), schedule_of())


def test_bounds_are_tail_probabilities():
    "Against a million draws: the bound for n questions is crossed by none, and two thirds of the way by some."
    for n in (1, 2, 5, 60, 80):
        low, high = std_bounds(n)
        widths = (torch.randn(1_000_000 // n, n, generator=seeded(n)).square().mean(1)).sqrt()
        assert low < widths.min() and widths.max() < high
        assert n > 2 or widths.max() > 2 / 3 * high
    assert std_bounds(1)[0] == 0 and std_bounds(68)[0] == 0.3 and 6 < std_bounds(1)[1] < 6.1
    assert std_bounds(6) == (0, 3) and std_bounds(261, 1.5) == (0.3, 4.5) and std_bounds(261, -1) == (0, math.inf)
    assert std_bounds(261, temperature=0.5) == (0.15, 3) and std_bounds(261, temperature=2.0) == (0.3, 6)
    assert std_bounds(261, 0.9) == (0, 3) and std_bounds(261, steps=4)[0] == 0 and std_bounds(261, steps=5)[0] == 0.3


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("told", [0.05, 0.5, 0.95, 0.999])
def test_guided_samples_of_an_exact_denoiser_are_within_the_bounds(gamma, told):
    "A question determines a share of the latents' variance; guided with the exact denoisers, for every sampler."
    schedule = schedule_of(timesteps=100, schedule="cosine", prediction="v")
    e = told**0.5 * torch.randn(2_000, 1, generator=seeded(0))

    def denoise(z, t, e):
        s, σ, mean = schedule.signal[t].float(), schedule.std[t].float(), e.nan_to_num()
        variance = torch.where(e.isnan(), 1.0, 1 - told)
        clean = mean + s * variance / (s**2 * variance + σ**2) * (z - s * mean)
        return (s * z - clean) / σ

    denoise.null = torch.full((1,), math.nan)
    for sampler, steps in product(SAMPLERS, (5, 20, None)):
        noise = torch.randn(2_000, 1, generator=seeded(1))
        path = SAMPLERS[sampler](with_cfg(denoise, e, gamma), noise, schedule, steps=steps, generator=seeded(2))
        check_samples(last(path)[None], e, schedule, gamma=gamma, steps=steps)
    if told > 0.99:  # with few steps and a large γ samples grow from step to step
        path = sample_ddim(with_cfg(denoise, e, 10.0), noise, schedule, steps=5)
        with pytest.raises(NumbersError, match="γ is too large for so few steps"):
            check_samples(last(path)[None], e, schedule, gamma=10.0, steps=5)


def test_samples_too_wide_or_too_narrow_are_an_error():
    e, u = torch.randn(100, 4, generator=seeded(0)), torch.randn(2, 100, 8, generator=seeded(1))
    with pytest.raises(NumbersError, match=r"from 0.3 to 3 \(100 questions, γ = 1\), got 3.[0-9]+.*multiplied by 214"):
        check_samples(3.3 * u, e, schedule_of())
    with pytest.raises(NumbersError, match="diverged, or was too short, or γ is too large"):
        check_samples(8 * u, e, schedule_of(prediction="v"), gamma=1.5)
    with pytest.raises(NumbersError, match=r"got 0.2[0-9]*\. .*collapsed to the middle"):
        check_samples(0.2 * u, e, schedule_of())
    check_samples(0.2 * u, e, schedule_of(), temperature=0.5)
    check_samples(0.2 * u, e, schedule_of(), steps=3)
    check_samples(0.2 * u, e, schedule_of(), gamma=0.0)
    check_samples(4 * u, e, schedule_of(), gamma=1.5)
    check_samples(0.2 * u, e[:1].expand(100, 4), schedule_of())  # a hundred times the same question
    check_samples(u[:, :0], e[:0], schedule_of())
    for bad in (math.nan, math.inf):
        with pytest.raises(NumbersError, match="finite"):
            check_samples(u.index_fill(1, torch.tensor([3]), bad), e, schedule_of())


def test_every_way_to_sample_is_checked():
    "An untrained denoiser of the noise runs away; nobody gets its last latent unless they say so."
    ldm, e = HyperLDM.make(4, 8, Identity()), torch.randn(30, 4, generator=seeded(0))
    options = [dict(sampler=name, steps=steps) for name, steps in product(SAMPLERS, (10, None))]
    for how in options:
        seen = []
        with pytest.raises(NumbersError, match="samples: expected"):
            seen.extend(ldm.trajectory(e, generator=seeded(1), **how))
        assert len(seen) == (how["steps"] or 350)  # the noise, and all but the last
        with pytest.raises(NumbersError, match="samples: expected"):
            ldm.generate(e, generator=seeded(1), **how)
        path = [*ldm.path(e, generator=seeded(1), check=False, **how)]
        assert all(torch.equal(a, b) for a, b in zip(seen, path)) and len(path) == len(seen) + 1
    ldm.generate(e, generator=seeded(1), start=torch.zeros(8), fraction=0.5, steps=5)
    ldm.generate(e, generator=seeded(1), energy=lambda z: z.sum(-1), steps=5)


@pytest.mark.parametrize(
    "kind, hidden, prediction, right",
    [
        ("published", 128, "epsilon", False),
        ("published", 128, "v", True),
        ("published_second", 256, "epsilon", True),
        ("residual", 128, "flow", True),
    ],
)
def test_the_papers_schedule_needs_a_denoiser_that_follows(kind, hidden, prediction, right):
    "On planted latents and the paper's schedule the first published denoiser of ε runs away; nobody gets its samples."
    latents, e = planted_latents(200, 64, 48, rank=12, views=4)
    size, diffusion = DenoiserConfig(hidden=hidden, depth=2), DiffusionConfig(prediction=prediction)
    ldm = HyperLDM.make(48, 64, Standardizer(latents), diffusion, size, DENOISERS[kind])
    run(train_hyperldm(ldm, latents, e, TrainConfig(steps=300, lr=2e-3)))
    sample = lambda **how: ldm.generate(e, generator=seeded(0), **how)[0]
    if not right:
        for gamma in (1.0, 1.5):
            with pytest.raises(NumbersError, match="multiplied by 214.*too narrow"):
                sample(gamma=gamma)
        return
    own = latents.mean(0)
    assert 0.7 < sample().std() < 1.6
    assert (sample() - own).norm(dim=1).mean() < 0.85 * (own - own.roll(1, 0)).norm(dim=1).mean()
    assert sample(gamma=1.5).isfinite().all()
    assert ldm.generate(e[:1], generator=seeded(0), samples=3).shape == (3, 1, 64)


def test_noise_belongs_to_seed_question_and_sample():
    draw = torch.Generator().manual_seed(0)
    e, z = torch.randn(6, 5, generator=draw), torch.randn(40, 3, generator=draw)
    ldm = HyperLDM.make(5, 3, Standardizer(z), DiffusionConfig(timesteps=20, schedule="cosine", prediction="v"))
    for sampler in "ddpm", "ddim", "dpm":
        of = lambda e, samples, seed=0: ldm.generate(
            e, generator=question_noise(e, samples, seed), samples=samples, sampler=sampler, gamma=1.5, check=False
        )
        every = of(e, 10)
        torch.testing.assert_close(every[:1], of(e, 1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(every[:, 4:5], of(e[4:5], 10), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(every.flip(1), of(e.flip(0), 10), rtol=1e-4, atol=1e-4)
        assert not (every[0] == every[1]).any() and not (every == of(e, 10, seed=1)).any()
    with pytest.raises(ValueError, match=r"noise for 6 rows, got \[2, 6, 3\]"):
        ldm.generate(e, generator=question_noise(e), samples=2)
