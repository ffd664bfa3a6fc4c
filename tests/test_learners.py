"Rows that draw, weigh and see pictures: each against an oracle on toy tasks."

import copy
from dataclasses import replace

import pytest
import torch
from test_experiment import TINY, experiment
from torch import nn

from hyperclip_nb.basenet.network import task_loss
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.evaluation import trainings
from hyperclip_nb.evaluation.classification import adapted_latents, classification_table, classify_split
from hyperclip_nb.evaluation.learners import POWERS, likelihood, score_few_shot_row, train_learner, weighted
from hyperclip_nb.evaluation.methods import regression_draws, train_method
from hyperclip_nb.evaluation.rows import FEW_SHOT_ROWS
from hyperclip_nb.evaluation.seeds import score_few_shot


@pytest.fixture(scope="module")
def x(tmp_path_factory):
    return experiment(tmp_path_factory.mktemp("run"), replace(TINY, conditional_dropout=0.5))


def test_every_few_shot_row_is_made_and_a_second_time_with_the_same_numbers(x):
    rows = [id for id in FEW_SHOT_ROWS if not id.startswith("few_shot")]
    scores, chosen = score_few_shot(x, 0, rows, (0, 1, "all"))
    again, chosen_again = score_few_shot(x, 0, rows, (0, 1, "all"))
    assert chosen == chosen_again and all(torch.equal(again[id], values) for id, values in scores.items())
    assert {id for id in rows if f"{id}+shuffled" in scores} == set(rows)
    with pytest.raises(ValueError, match="few-shot row"):
        train_learner(x, 0, "multitask")
    with pytest.raises(ValueError, match="sees no labels"):
        train_method(x, 0, "few_shot")


def test_without_pictures_guidance_is_plain_sampling(x):
    method = train_learner(x, 0, "hnet_hyperldm_g1.5~few_shot")
    tasks, questions = x.sets["test"], x.embeddings["test"]
    batch = tasks.batch(tasks.all_ids, "support")
    places = [replace(batch, mask=torch.zeros_like(batch.mask)), batch]
    empty, full = ([place().latents for place in method.learner(questions, seeded(0))(b)] for b in places)
    assert len(empty) == len(method.settings) == 3
    assert all(torch.allclose(z, empty[0]) for z in empty) and not torch.allclose(full[0], full[2])


def test_weights_are_powers_of_the_likelihood(x):
    tasks, generate, draws = x.sets["test"], x.generator("hvae", 0), regression_draws(x, 0, "hvae", 6)
    batch, z = tasks.batch(tasks.all_ids, "support"), draws(x.embeddings["test"], seeded(3))
    found = list(weighted(generate, draws).learner(x.embeddings["test"], seeded(3))(batch))
    nats = torch.stack([-task_loss(generate(one), batch, x.net) for one in z]) * batch.mask.sum(1)
    for mixture, η in zip(found, POWERS, strict=True):
        assert torch.equal(mixture.latents, z)
        torch.testing.assert_close(mixture.log_shares, η * nats, atol=1e-3, rtol=1e-4)


def test_the_network_that_gave_the_labels_gets_the_weight(x):
    tasks, generate = x.sets["test"], x.generator("hnet", 0)
    z = 5 * torch.randn(4, len(tasks), generate.latent_size, generator=seeded(0))
    batch = tasks.batch(tasks.all_ids, "support")
    log_p = torch.stack([x.net.logits(generate(one), batch).log_softmax(-1) for one in z])
    taught = replace(batch, labels=log_p[2].argmax(-1) * batch.mask)
    assert (likelihood(log_p, taught).argmax(0) == 2).float().mean() > 0.7


def test_draws_are_training_latents_as_often_as_their_share(x):
    regression, questions = x.question_regression("hvae", 0), x.embeddings["test"]
    z = regression_draws(x, 0, "hvae", 4000)(questions, seeded(0))  # [K, T, Z]
    which = torch.cdist(z.transpose(0, 1), regression.latents).argmin(-1)  # [T, K]
    assert torch.equal(regression.latents[which.T], z)
    shares = regression.shares(x.partly_whitened(questions))
    often = torch.stack([row.bincount(minlength=shares.shape[1]) for row in which]) / 4000
    torch.testing.assert_close(often.to(shares), shares, atol=0.04, rtol=0)


def test_the_mean_of_latents_is_one_network(x):
    row, draw = "hvae_hyperldm_g1.5~mean_latent@10", dict(gamma=1.5, samples=10)
    w = train_method(x, 0, row).weights(x.embeddings["test"], seeded(4))
    z = x.sample("hvae", 0, x.embeddings["test"], generator=seeded(4), **draw)
    torch.testing.assert_close(w, x.generator("hvae", 0)(z.mean(0))[None])


def test_dropout_passes_differ_and_leave_no_trace(x):
    plain, ten = (train_method(x, 0, f"cond_multitask{k}") for k in ("", "@10"))
    questions, state = x.embeddings["test"], torch.get_rng_state()
    w, again, other = (ten.weights(questions, seeded(s)) for s in (0, 0, 1))
    assert w.shape == (10, len(x.sets["test"]), x.net.size) and torch.equal(w, again) and not torch.equal(w, other)
    assert torch.equal(state, torch.get_rng_state()) and (w[0] != w[1]).any()
    model = x.conditional(0, "cond_multitask")
    assert not any(layer.training for layer in model.modules() if isinstance(layer, nn.Dropout))
    many = torch.cat([ten.weights(questions, seeded(s)) for s in range(100)])
    one = plain.weights(questions, seeded(0))[0]  # dropout before a linear layer: unbiased where nothing follows
    assert (many.mean(0) - one).norm() < 0.2 * (many[0] - one).norm()


def test_curvature_that_is_the_same_everywhere_changes_nothing(tmp_path):
    x = experiment(tmp_path, replace(TINY, scale="global"))
    latents, conditions = x.latents("hvae", 0), x.condition("hvae", 0)
    flat = torch.eye(latents.shape[-1]).expand(*latents.shape, -1)
    steep = torch.diag(torch.arange(1.0, 1 + latents.shape[-1])).expand_as(flat)
    trained = []
    for curvature in (None, flat, steep):
        ldm, training = trainings.hyperldm(latents, conditions, x.recipe, 0, curvature)
        for _ in training.steps():
            pass
        trained.append(torch.cat([p.flatten() for p in ldm.denoiser.parameters()]))
    torch.testing.assert_close(trained[1], trained[0])
    assert not torch.allclose(trained[2], trained[0], atol=1e-6)


def test_a_row_with_frequencies_stands_beside_the_row_and_chooses_its_own_smoothing(x):
    scores, chosen = score_few_shot_row(x, 0, "few_shot~multitask", ("all",), "val")
    assert set(scores) == {"few_shot~multitask", "few_shot~multitask~frequencies"}
    assert chosen["few_shot~multitask~frequencies"]["alpha"] in (1, 3, 10, 30)


def test_new_tasks_are_adapted_as_the_training_tasks_were(x):
    "So that task classification compares like with like."
    y = copy.copy(x)
    y.sets = {**x.sets, "val": x.sets["train"]}
    torch.testing.assert_close(adapted_latents(y, "hnet", 0, "val"), x.latents("hnet", 0)[0])
    found = {split: classify_split(x, "hvae", 0, split, choices=2) for split in ("train", "test")}
    for split, result in found.items():
        assert result.chosen.shape == (len(x.sets[split]),) * 2 and 0 <= result.accuracy <= 100
    table = classification_table({"hvae": found}, choices=2).splitlines()
    assert table[0] == "| Generator | Train tasks | Test tasks | Chance |" and table[2].endswith("| 50.0 |")
