import warnings
from dataclasses import replace

import pytest
import torch
from test_hvae import NET, SMALL, SPANNED, rng, toy_weights

from hyperclip_nb.core.blocks import Standardizer, principal_directions
from hyperclip_nb.core.runs import Run
from hyperclip_nb.core.training import TrainConfig, fit, run
from hyperclip_nb.evaluation.parts import Parts, Training
from hyperclip_nb.evaluation.recipe import Recipe
from hyperclip_nb.hypernet.hvae import HVAE, HVAEConfig, HVAELoss, kl_to_prior, train_hvae
from hyperclip_nb.hypernet.hvae_health import hvae_report

UNTRAINED = pytest.mark.filterwarnings("ignore:the HVAE's decoder ignores its latent")
LINEAR = HVAEConfig(latent_size=5, hidden=(), components=5, decodes="components", scale="global")


def passing_on(weights, w0):
    "An HVAE whose latent is the components: the best linear autoencoder there is."
    model = HVAE.make(NET, weights, w0, LINEAR)
    with torch.no_grad():
        model.encoder[0].weight.copy_(5**0.5 * torch.eye(10, 5))
        model.decoder[0].weight.copy_(torch.eye(5))
    return model


def share_of_components(weights, size, of=None):
    "Share of the variance of standardised weights in the span of the training weights' components, by projection."
    scaler = Standardizer(weights, "global")
    directions, _ = principal_directions(weights, scaler, size, rng())
    u = scaler.encode(weights if of is None else of)
    return ((u @ directions).square().sum() / u.square().sum()).item()


def test_r2_of_an_hvae_that_passes_components_on_is_that_of_principal_components():
    w0, weights = toy_weights(rank=8, noise=0.1)
    _, others = toy_weights(rank=8, noise=0.1, views=1, tasks=11, seed=1)
    report = hvae_report(passing_on(weights, w0), weights, others, chunk=7)
    assert report.r2 == pytest.approx(share_of_components(weights, 5), abs=1e-4)
    assert report.r2_left_out == pytest.approx(share_of_components(weights, 5, others), abs=1e-4)
    assert report.active == 5 and report.dead_encoder == report.dead_decoder == 0


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_no_training_takes_r2_above_that_of_the_components(activation):
    w0, weights = toy_weights(rank=8, noise=0.1)
    config = replace(SPANNED, latent_size=8, hidden=(32,), components=3, activation=activation, decoder_gain=0.1)
    model, most = HVAE.make(NET, weights, w0, config), share_of_components(weights, 3)
    run(train_hvae(model, weights, train=TrainConfig(steps=400, lr=5e-3), config=HVAELoss(beta=0.01)))
    report = hvae_report(model, weights)
    assert 0.8 * most < report.r2 <= most + 1e-4


@UNTRAINED
@pytest.mark.parametrize("config", [SMALL, SPANNED, replace(SMALL, scale="dimension", components=4)])
def test_a_report_is_what_decoding_all_weights_at_once_gives(config):
    w0, weights = toy_weights(noise=0.3)
    model = HVAE.make(NET, weights, w0, config)
    report, flat = hvae_report(model, weights, chunk=13), weights.flatten(0, 1)
    with torch.no_grad():
        mean, log_var = model.encode(flat)
        error = ((model(mean) - flat) / model.scaler.std).square().sum()
    total = ((flat - model.scaler.mean) / model.scaler.std).square().sum()
    assert report.r2 == pytest.approx(1 - (error / total).item(), abs=1e-4)
    assert report.kl == pytest.approx(kl_to_prior(mean, log_var).mean().item(), rel=1e-4)
    assert report.active == (mean.var(0) > 0.01).sum() and report.latent_size == 3
    assert not any(layer._forward_hooks for layer in model.modules())


@UNTRAINED
def test_weights_may_be_mapped_from_a_file(tmp_path):
    w0, weights = toy_weights()
    mapped = torch.from_file(str(tmp_path / "w"), shared=True, size=weights.numel()).view(weights.shape).copy_(weights)
    model = HVAE.make(NET, weights, w0, SPANNED)
    assert hvae_report(model, mapped, chunk=11) == hvae_report(model, weights, chunk=11)


@UNTRAINED
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_dead_units_and_dead_dimensions_are_counted(activation):
    w0, weights = toy_weights()
    config = replace(SMALL, hidden=(16, 8), latent_size=6, activation=activation)
    model = HVAE.make(NET, weights, w0, config)
    with torch.no_grad():
        model.encoder[0].weight[:4], model.encoder[0].bias[:4] = 0, -20  # 4 of 16, and none of the other layer
        model.decoder[0].weight[:6], model.decoder[0].bias[:6] = 0, -20  # 6 of 8 in the decoder's first layer
        model.encoder[-1].weight[:2] = 0  # two means that say nothing
    report = hvae_report(model, weights)
    assert (report.dead_encoder, report.dead_decoder, report.active) == (4 / 16, 6 / 8, 4)
    assert "4 of 6 dimensions active; dead units: encoder 25%, decoder 75%" in str(report)


def silenced():
    "A decoder that makes one network, whatever the latent."
    w0, weights = toy_weights()
    model = HVAE.make(NET, weights, w0, replace(SMALL, activation="relu", scale="dimension"))
    with torch.no_grad():
        model.decoder[0].weight.zero_()
        model.decoder[0].bias.fill_(-1.0)
    return model, weights


def test_a_decoder_that_ignores_its_latent_is_a_warning_that_names_causes():
    model, weights = silenced()
    with pytest.warns(UserWarning, match="ignores its latent") as caught:
        report = hvae_report(model, weights)
    text = str(caught[0].message)
    assert report.ignores_latent and abs(report.r2) < 1e-6 and report.dead_decoder == 1
    for cause in "100% of a layer's units died", "activation='silu'", "scale='global'", "learning rate":
        assert cause in text
    assert "beta" not in text  # dimensions are active: the KL divergence isn't the cause


def test_a_collapsed_posterior_is_a_warning_whatever_the_loss():
    w0, weights = toy_weights()
    model = HVAE.make(NET, weights, w0, SMALL)
    with torch.no_grad():
        model.encoder[-1].weight.zero_()
    with pytest.warns(UserWarning, match="0 of 3 dimensions active.*lower beta=3"):
        hvae_report(model, weights, loss=HVAELoss(loss="task", beta=3.0))


def test_a_low_r2_is_no_fault_where_the_tasks_loss_was_minimised():
    w0, weights = toy_weights()
    model = HVAE.make(NET, weights, w0, replace(SMALL, decoder_gain=0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = hvae_report(model, weights, loss=HVAELoss(loss="task"))
    assert abs(report.r2) < 1e-6 and "which the task's loss does not ask for" in str(report)
    with pytest.warns(UserWarning, match="ignores its latent"):
        hvae_report(model, weights, loss=HVAELoss(loss="task", mix=0.1))


@UNTRAINED
def test_a_small_start_learns_where_an_ordinary_one_has_to_silence_its_units_first():
    "The published form: its random last layer starts as noise of the weights' own size."
    w0, weights = toy_weights(tasks=200, rank=6, noise=0.3)
    before, after = [], []
    for gain in (1.0, 0.1):
        model = HVAE.make(NET, weights, w0, HVAEConfig(latent_size=32, hidden=(32, 32), decoder_gain=gain))
        before.append(hvae_report(model, weights).r2)
        run(train_hvae(model, weights, train=TrainConfig(steps=300, lr=3e-3)))
        after.append(hvae_report(model, weights).r2)
    assert before[0] < -0.3 and abs(before[1]) < 0.02
    assert after[1] > 0.3 and after[0] < after[1] / 2


def test_what_a_check_says_is_reported_once_where_a_part_is_trained(tmp_path):
    told, model = [], torch.nn.Linear(1, 1)
    parts = Parts(Run.create(tmp_path, {}), Recipe(), "toy", report=told.append)
    loss = lambda batch, generator: model.weight.square().sum()
    steps = lambda: fit(model, loss, lambda generator: None, TrainConfig(steps=2))
    for _ in range(2):  # the second time the part is loaded
        parts.trained("hvae", 0, Training(model, steps, lambda: "R² 0.70"))
    assert told[0] == "hvae-0: R² 0.70" and len(told) == 2 and told[1].endswith(" s")
