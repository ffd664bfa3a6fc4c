"""The plain way: one task at a time, one latent at a time, every gradient by autograd. What the product is measured
against.

Nothing here is imported by the package. The networks (their parameters) are the product's; how they are used is not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperclip_nb.basenet.fast.layers import WideLinear
from hyperclip_nb.basenet.network import BaseNet
from hyperclip_nb.diffusion.denoisers import Denoiser
from hyperclip_nb.diffusion.schedule import Schedule

Examples = tuple[Tensor, Tensor, Tensor]  # images [N, E], labels [N], answers [C, E] of one task


def plain(model: nn.Module) -> nn.Module:
    "The same network with `nn.Linear` for every wide layer; changed in place."
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, WideLinear):
                linear = nn.Linear(1, 1)
                linear.weight, linear.bias = (
                    nn.Parameter(layer.weight.detach().contiguous(), layer.columns.requires_grad),
                    layer.bias,
                )
                setattr(module, name, linear)
    return model


def same_shape(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    "A gradient of a wide layer beside that of the same `nn.Linear`."
    return (mine if mine.shape == theirs.shape else mine.mT), theirs


def weights(hnet: nn.Module, z: Tensor) -> Tensor:  # [P]
    "One network from one latent, layer after layer."
    return hnet.head(hnet.body(z[None]))[0]


def logits(w: Tensor, images: Tensor, answers: Tensor, net: BaseNet) -> Tensor:  # [N, C]
    "The base network of one task, as in the paper: weights of unit variance, divided by the square root of the fan-in."
    m = {name: matrix[0] for name, matrix in net.split(w[None]).items()}
    hidden = F.linear(images, m["W1"] / net.embed**0.5, m["b1"]).relu()
    adapted = images + F.linear(hidden, m["W2"] / net.hidden**0.5, m["b2"])
    return 100 * F.normalize(adapted, dim=-1) @ F.normalize(answers, dim=-1).T


def loss(w: Tensor, task: Examples, net: BaseNet) -> Tensor:
    images, labels, answers = task
    return F.cross_entropy(logits(w, images, answers, net), labels)


@torch.no_grad()
def accuracy(w: Tensor, task: Examples, net: BaseNet) -> float:
    images, labels, answers = task
    return (logits(w, images, answers, net).argmax(-1) == labels).float().mean().item()


def adapt(generate: nn.Module, task: Examples, steps: int, lr: float = 0.1) -> Tensor:  # [Z]
    "Gradient descent on one task's latent."
    z = generate.z0.detach().clone()
    for _ in range(steps):
        z.requires_grad_()
        (grad,) = torch.autograd.grad(loss(weights(generate, z), task, generate.net), z)
        z = (z - lr * grad).detach()
    return z


def meta_gradient(
    generate: nn.Module, tasks: list[tuple[Examples, Examples]], steps: int, lr: float = 0.1
) -> list[float]:
    "First-order HNet-MAML: leaves the query losses' gradient in `.grad`; returns the authors' four accuracies."
    metrics, net = [], generate.net
    for support, query in tasks:
        with torch.no_grad():
            w = weights(generate, generate.z0)
        metrics += [accuracy(w, support, net), accuracy(w, query, net)]
        z = adapt(generate, support, steps, lr)
        w = weights(generate, z + generate.z0 - generate.z0.detach())
        (loss(w, query, net) / len(tasks)).backward()
        metrics += [accuracy(w.detach(), support, net), accuracy(w.detach(), query, net)]
    return metrics


@torch.no_grad()
def sample(denoiser: Denoiser, schedule: Schedule, noises: Tensor, e: Tensor, gamma: float) -> Tensor:  # [Z]
    "Ancestral sampling of a latent for the question `e` [E]; `noises` [S + 1, Z]: the start, then each step's noise."
    z = noises[0]
    for i, fresh in zip(reversed(range(len(schedule))), noises[1:]):
        kept, before = schedule.alpha_bars[i].item(), schedule.previous[i].item()
        t = schedule.timesteps[i]
        predicted = denoiser(z[None], t, e[None])[0]
        if gamma != 1:
            predicted = (1 - gamma) * denoiser(z[None], t, torch.zeros_like(e)[None])[0] + gamma * predicted
        beta = 1 - kept / before
        z = (z - beta / (1 - kept) ** 0.5 * predicted) / (1 - beta) ** 0.5
        if i > 0:
            z = z + beta**0.5 * fresh
    return z


@torch.no_grad()
def sample_ddim(denoiser: Denoiser, schedule: Schedule, z: Tensor, e: Tensor, gamma: float) -> Tensor:  # [Z]
    "Deterministic sampling (DDIM) of one latent along a schedule that may leave steps out."
    for i in reversed(range(len(schedule))):
        kept, before = schedule.alpha_bars[i].item(), schedule.previous[i].item()
        t = schedule.timesteps[i]
        predicted = denoiser(z[None], t, e[None])[0]
        if gamma != 1:
            predicted = (1 - gamma) * denoiser(z[None], t, torch.zeros_like(e)[None])[0] + gamma * predicted
        clean = (z - (1 - kept) ** 0.5 * predicted) / kept**0.5
        z = before**0.5 * clean + (1 - before) ** 0.5 * predicted
    return z


def diffusion_step(
    denoiser: Denoiser, schedule: Schedule, latents: Tensor, embeddings: Tensor, index: Tensor, noise: Tensor
) -> None:
    "Gradient of the ε-loss over a batch, one latent after the other; left in `.grad`."
    for z, e, i, fresh in zip(latents, embeddings, index, noise):
        noisy = schedule.alpha_bars[i].item() ** 0.5 * z + (1 - schedule.alpha_bars[i].item()) ** 0.5 * fresh
        predicted = denoiser(noisy[None], schedule.timesteps[i][None], e[None])[0]
        (F.mse_loss(predicted, fresh) / len(latents)).backward()


def hvae_gradient(model: nn.Module, weights: Tensor, noises: Tensor) -> None:
    "Gradient of the published HVAE loss over a batch [B, P], one network after the other; left in `.grad`."
    root = weights.shape[-1] ** 0.5
    for w, noise in zip(weights, noises):
        mean, log_var = model.encode(w[None])
        decoded = model(mean + (log_var / 2).exp() * noise)
        kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum()
        error = (((decoded - w) / model.scaler.std) ** 2).sum()
        ((error + kl) / root / len(weights)).backward()


def contrast_gradient(model: nn.Module, generate: nn.Module, latents: Tensor, embeddings: Tensor) -> None:
    "Gradient of HyperCLIP's loss over a batch, one network after the other; left in `.grad`."
    seen = []
    for z in latents:
        with torch.no_grad():
            w = weights(generate, z)
        seen.append(F.normalize(model.encoder(w / len(w) ** 0.5), dim=0))
    texts = [F.normalize(e, dim=0) for e in embeddings]
    logits = model.scale * torch.stack(seen) @ torch.stack(texts).T
    own = torch.arange(len(latents), device=latents.device)
    ((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2).backward()
