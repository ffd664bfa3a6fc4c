import pytest
import torch
from conftest import EMBED
from torch import Tensor

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.basenet.network import task_loss
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.diffusion.schedule import weighted_square
from hyperclip_nb.hypernet.curvature import latent_curvature, lift
from hyperclip_nb.hypernet.hypernetworks import HNet
from hyperclip_nb.hypernet.metatrain import Adaptation, adapt

net = AdapterNet(EMBED, 3)


@pytest.fixture
def tasks(ragged) -> TaskSet:
    return TaskSet(ragged.tasks, ragged.bank, dtype=torch.float64)


@pytest.fixture
def hnet() -> HNet:
    return HNet(net, 4, (9,), output_gain=1.0, generator=torch.Generator().manual_seed(1)).double()


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_hessian_is_autograds_task_by_task(tasks, hnet):
    z = normal(2, len(tasks), 4)
    curvature = latent_curvature(hnet, z, tasks, "hessian", limit=20)  # several buckets
    assert curvature.shape == (2, len(tasks), 4, 4)
    for view in range(2):
        for t in range(len(tasks)):
            batch = tasks.batch(torch.tensor([t]), "all")
            alone = torch.autograd.functional.hessian(lambda v: task_loss(hnet(v[None]), batch, net).sum(), z[view, t])
            torch.testing.assert_close(curvature[view, t], alone)


def test_gauss_newton_is_the_mean_outer_product_of_expected_log_likelihood_gradients(tasks, hnet):
    "It is the Fisher information: the expectation, over answers as the network gives them, of gradient times gradient."
    z = normal(len(tasks), 4)
    curvature = latent_curvature(hnet, z, tasks)
    for t in range(len(tasks)):
        batch = tasks.batch(torch.tensor([t]), "all")
        log_p = lambda v: net.logits(hnet(v[None]), batch)[0].log_softmax(-1)
        slopes, p = torch.autograd.functional.jacobian(log_p, z[t]), log_p(z[t]).detach().exp()
        torch.testing.assert_close(curvature[t], torch.einsum("nc,nci,ncj->ij", p, slopes, slopes) / len(p))
    assert (torch.linalg.eigvalsh(curvature) > -1e-9 * curvature.abs().amax()).all()


def test_a_step_along_a_steep_direction_costs_what_the_curvature_says(tasks, hnet):
    "In a valley the loss is the curvature's parabola."
    z = adapt(hnet, normal(len(tasks), 4), tasks.batch(tasks.all_ids, "all"), Adaptation(steps=300, lr=0.02))
    curvature, batch = latent_curvature(hnet, z, tasks, "hessian"), tasks.batch(tasks.all_ids, "all")
    values, directions = torch.linalg.eigh(curvature)
    step = 1e-4 * directions[..., -1]
    there, back, here = (task_loss(hnet(place), batch, net) for place in (z + step, z - step, z))
    cost = (there + back) / 2 - here
    torch.testing.assert_close(cost, 1e-8 / 2 * values[:, -1], rtol=1e-2, atol=1e-11)


def test_lift_raises_eigenvalues_and_keeps_directions():
    turn = torch.linalg.qr(normal(5, 4, 4)).Q
    values = torch.tensor([-3.0, 0.0, 1.0, 8.0], dtype=torch.float64)
    lifted = lift((turn * values) @ turn.mT, floor=0.1)
    torch.testing.assert_close(lifted, (turn * torch.tensor([0.3, 0.3, 1.0, 8.0], dtype=torch.float64)) @ turn.mT)
    positive = (turn * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)) @ turn.mT
    torch.testing.assert_close(lift(positive), positive)


def test_the_weighted_loss_is_a_loop_over_tasks(tasks, hnet):
    weight = lift(latent_curvature(hnet, normal(len(tasks), 4), tasks))
    error = normal(len(tasks), 4, seed=1)
    loop = sum(float(error[t] @ weight[t] @ error[t] / weight[t].trace()) for t in range(len(tasks))) / len(tasks)
    assert float(weighted_square(error, weight)) == pytest.approx(loop)


def test_bad_input_is_refused(tasks, hnet):
    with pytest.raises(ValueError, match="gauss_newton"):
        latent_curvature(hnet, normal(len(tasks), 4), tasks, "fisher")
    with pytest.raises(ValueError, match="latents"):
        latent_curvature(hnet, normal(len(tasks) + 1, 4), tasks)
    with pytest.raises(ValueError, match="floor"):
        lift(torch.eye(3), 0.0)
