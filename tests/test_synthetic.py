"""Every method on a family of tasks with a known answer.

A known generator `w = Known(z)`, which scales and shifts the hidden units of a known base network, labels random
images of each task with the probabilities of the network `Known(z*)`, where z* is a linear function of the task's
embedding. So the best accuracy is that of `Known(z*)`, and a method that reads the embedding can reach it: a
conditional network must come within 2 points of it on new tasks and images, and one network for all must not.
(Guidance by HyperCLIP on such a family: test_guidance.py.)
"""

from dataclasses import replace

import pytest
import torch
from conftest import EMBED, ToyBank
from torch import Tensor, nn

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.basenet.network import set_accuracy
from hyperclip_nb.core.blocks import Standardizer
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.core.training import TrainConfig, run
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.tasks import Task
from hyperclip_nb.diffusion.denoisers import DenoiserConfig
from hyperclip_nb.diffusion.hyperldm import HyperLDM, LDMConfig, train_hyperldm
from hyperclip_nb.diffusion.schedule import DiffusionConfig
from hyperclip_nb.guidance.question_regression import KernelRegression
from hyperclip_nb.hypernet.film import FiLM, modulate
from hyperclip_nb.hypernet.hypernetworks import HNet, MNet
from hyperclip_nb.hypernet.metatrain import Adaptation, Episodes, adapt, fit_meta

net, LATENT, QUESTION, TOLERANCE = AdapterNet(EMBED, 4), 4, 5, 2.0
TRAIN = TrainConfig(steps=500, lr=0.05, schedule="linear")
ALL = Episodes(support=1, query=79)  # multitask learning takes no support set: nearly all examples go into the loss


class Known(nn.Module):
    "The generator that labels the images: `modulate` with a scale 1 + z·S and a shift z·B. Linear in z."

    def __init__(self):
        super().__init__()
        normal = lambda *shape: torch.randn(shape, generator=seeded(0, "known", *shape))
        self.net, self.latent_size, self.w0 = net, LATENT, normal(net.size)
        self.scale, self.shift = normal(2, LATENT, net.hidden) / LATENT**0.5
        self.from_embedding = normal(QUESTION, LATENT) / QUESTION**0.5

    def forward(self, z: Tensor) -> Tensor:
        return modulate(self.w0, 1 + z @ self.scale, z @ self.shift, net)


known = Known()


class Family:
    "Tasks, their embeddings [T, E] and their optimal latents [T, Z]."

    def __init__(self, name: str, count: int, support: int, query: int):
        draw, sizes = seeded(0, name), {"support": support, "query": query}
        self.e = torch.randn(count, QUESTION, generator=draw)
        self.z = self.e @ known.from_embedding

        def tasks(labels):
            return [
                Task(
                    question=f"{name} {t}?",
                    answers=tuple("abcd"),
                    prompts=tuple(f"{name} {t} {c}" for c in "abcd"),
                    **{
                        part: tuple((f"{name}-{t}-{part}-{i}", labels[part][t][i]) for i in range(n))
                        for part, n in sizes.items()
                    },
                )
                for t in range(count)
            ]

        blank = tasks({part: [[0] * n] * count for part, n in sizes.items()})
        bank = ToyBank(blank, seed=count)
        unlabelled, labels = TaskSet(blank, bank), {}
        for part in sizes:
            probs = (net.logits(known(self.z), unlabelled.batch(unlabelled.all_ids, part)) / 5).softmax(-1)
            labels[part] = torch.multinomial(probs.flatten(0, 1), 1, generator=draw).view(probs.shape[:2]).tolist()
        self.set = TaskSet(tasks(labels), bank)

    def accuracy(self, w: Tensor) -> float:
        return 100 * set_accuracy(w, self.set, net).mean().item()


@pytest.fixture(scope="module")
def train():
    return Family("train", 600, 40, 40)


@pytest.fixture(scope="module")
def unseen():
    return Family("test", 60, 40, 100)


@pytest.fixture(scope="module")
def best(unseen):
    return unseen.accuracy(known(unseen.z))


@pytest.fixture(scope="module")
def multitask(train):
    model = MNet(net)
    run(fit_meta(model, train.set, replace(TRAIN, steps=200, lr=0.1), episodes=ALL))
    return model.z0.detach()


def shuffled(unseen: Family) -> Tensor:
    return unseen.e.roll(17, 0)


def test_one_network_for_all_stays_clearly_below(unseen, best, multitask):
    clip, shared = unseen.accuracy(torch.zeros(1, net.size)), unseen.accuracy(multitask[None])
    assert best - shared > 8 and shared > clip
    assert best - unseen.accuracy(known(torch.zeros(1, LATENT))) > 8  # nor is the mean latent enough


@pytest.mark.parametrize("network", [HNet, FiLM])
def test_conditional_networks(network, train, unseen, best, multitask):
    """Algorithms 5 and 6. The truth is linear in the embedding, so a hypernetwork without hidden layers contains it.
    FiLM can express it before the ReLU, where the known generator scales and shifts; after the ReLU it can not."""
    model = network(net, QUESTION, hidden=(), start=multitask)
    run(fit_meta(model, train.set, TRAIN, embeddings=train.e, episodes=ALL))
    assert unseen.accuracy(model(unseen.e)) > best - TOLERANCE
    assert unseen.accuracy(model(shuffled(unseen))) < best - 8


def test_conditional_hnet_maml(train, unseen, best, multitask):
    "Algorithm 7, with the loss at the start itself: good before and after the inner steps."
    model, inner = HNet(net, QUESTION, hidden=(), start=multitask), Adaptation(steps=2, lr=0.02)
    run(
        fit_meta(
            model,
            train.set,
            TRAIN,
            embeddings=train.e,
            adaptation=inner,
            anchor=1.0,
            episodes=Episodes(support=20, query=60),
        )
    )
    adapted = adapt(model, unseen.e, unseen.set.batch(unseen.set.all_ids), inner)
    assert unseen.accuracy(model(unseen.e)) > best - TOLERANCE
    assert unseen.accuracy(model(adapted)) > best - TOLERANCE
    assert not torch.equal(adapted, unseen.e)


def test_hyperldm_on_the_true_latents(train, unseen, best):
    "Algorithms 12 and 14. One sample per task; a sample given a question must be that question's latent."
    ldm = HyperLDM.make(
        QUESTION,
        LATENT,
        Standardizer(train.z),
        DiffusionConfig(timesteps=100, schedule="cosine", prediction="v"),
        DenoiserConfig(hidden=64, depth=2, time_size=16),
    )
    run(
        train_hyperldm(
            ldm, train.z, train.e, TrainConfig(steps=2_000, lr=3e-3, schedule="linear"), LDMConfig(batch=128, drop=0.1)
        )
    )
    sample = lambda e, gamma: ldm.generate(e, gamma=gamma, generator=seeded(1))[0]
    assert unseen.accuracy(known(sample(unseen.e, 1.0))) > best - TOLERANCE
    assert unseen.accuracy(known(sample(shuffled(unseen), 1.0))) < best - 8
    assert unseen.accuracy(known(sample(unseen.e, 0.0))) < best - 8  # without the question it draws some task's latent


def test_kernel_regression_on_the_true_latents(train, unseen, best):
    regression = KernelRegression.fit(train.e, train.z, bandwidth=2.0, ridge=0.01)
    assert unseen.accuracy(known(regression(unseen.e))) > best - TOLERANCE
    assert unseen.accuracy(known(regression(shuffled(unseen)))) < best - 8


def test_mnet_maml_improves_after_adaptation(train, unseen, multitask):
    "Algorithm 3. An initialisation: three steps from it lead past the one network for all, and far past itself."
    model, inner = MNet(net), Adaptation(steps=3, lr=0.1)
    run(fit_meta(model, train.set, replace(TRAIN, steps=200, lr=0.03), adaptation=inner))
    adapted = adapt(model, model.z0, unseen.set.batch(unseen.set.all_ids, "support"), inner)
    assert unseen.accuracy(adapted) > unseen.accuracy(model.z0[None]) + 8
    assert unseen.accuracy(adapted) > unseen.accuracy(multitask[None]) + 3
