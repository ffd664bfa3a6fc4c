"Base networks that are not the adapter: every algorithm of the paper runs with them, and they mean what they say."

import json
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from conftest import EMBED
from test_experiment import TINY, experiment
from torch import nn

import hyperclip_nb as hc
from hyperclip_nb.basenet.fast.kernels import first_order_loss
from hyperclip_nb.basenet.network import BaseNet, mean_over_examples, set_accuracy, task_loss
from hyperclip_nb.core.blocks import NumbersError
from hyperclip_nb.core.files import FileError, RunError
from hyperclip_nb.core.training import TrainConfig, run
from hyperclip_nb.dataset.batches import TaskBatch, TaskSet
from hyperclip_nb.evaluation.methods import train_method
from hyperclip_nb.evaluation.rows import ROWS
from hyperclip_nb.evaluation.seeds import score_seed
from hyperclip_nb.hypernet.film import FiLM, FiLMNet, modulate, modulated
from hyperclip_nb.hypernet.finetune import draw_views, examples_under, finetune
from hyperclip_nb.hypernet.hvae import HVAE, HVAEConfig, HVAELoss, hvae_latents, train_hvae
from hyperclip_nb.hypernet.hypernetworks import HNet, MNet
from hyperclip_nb.hypernet.metatrain import Adaptation, Episodes, adapt, fit_meta, task_energy


def mlp(seed=0, outputs=5, size=EMBED):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(size, 6), nn.Tanh(), nn.Linear(6, outputs))


@dataclass(frozen=True)
class Probe(BaseNet):
    "Four methods and no more: what a user writes at least."

    outputs: int = 5

    @property
    def shapes(self):
        return {"weight": (self.outputs, EMBED)}

    def initial(self, generator):
        return 0.1 * torch.randn(self.size, generator=generator)

    def logits(self, w, batch):
        logits = batch.images @ self.split(w)["weight"].mT
        return logits[..., : batch.answer_mask.shape[1]].masked_fill(~batch.answer_mask[:, None], -torch.inf)

    def spec(self):
        return {"net": "Probe", "outputs": self.outputs}


NETS = {
    "mlp": lambda: hc.ModuleNet(mlp()),
    "head": lambda: hc.ModuleNet(mlp(), trainable=("2.weight", "2.bias")),
    "lora": lambda: hc.LoRANet(mlp(outputs=EMBED), rank=2, match=("0.weight", "2.weight")),
    "own": Probe,
}
nets = pytest.mark.parametrize("name", NETS)


def weights(net, count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return net.initial(draw) + 0.3 * torch.randn(count, net.size, generator=draw)


def test_every_algorithm_of_the_paper_runs_with_a_perceptron(tmp_path):
    "All rows, with their controls: algorithms 2 to 14, both generators, guidance and sampling."
    rows = tuple(id for id in ROWS if id != "clip_zero_shot")  # a perceptron has no weights that change nothing
    x = experiment(tmp_path, net=hc.ModuleNet(mlp()))
    scores, _ = score_seed(x, 0, rows)
    assert set(rows) <= set(scores) and all(s.isfinite().all() and s.shape == (5,) for s in scores.values())
    for id in "multitask", "mnet_maml", "hnet_maml", "cond_multitask", "cond_multitask_film", "cond_hnet_maml":
        w = train_method(x, 0, id).weights(x.embeddings["test"], torch.Generator().manual_seed(0))
        assert w.shape[-1] == x.net.size and w.isfinite().all(), id
    for kind in "hnet", "hvae":
        z = x.sample(kind, 0, x.embeddings["test"], gamma=1.5, generator=torch.Generator().manual_seed(0))
        assert x.generator(kind, 0)(z[0]).shape == (5, x.net.size)
    with pytest.raises(ValueError, match="neutral weights for zero-shot, got ModuleNet"):
        train_method(x, 0, "clip_zero_shot")


@pytest.mark.parametrize("name", ["lora", "own"])
def test_other_networks_run_the_main_rows(tmp_path, name):
    rows = ("multitask", "cond_multitask_film", "hvae_hyperldm_g1.5", "hnet_hyperclip")
    rows += ("clip_zero_shot",) if name == "lora" else ()
    scores, _ = score_seed(experiment(tmp_path, net=NETS[name]()), 0, rows)
    assert set(rows) <= set(scores) and all(s.isfinite().all() for s in scores.values())


def test_a_part_of_one_network_is_not_taken_for_anothers(tmp_path):
    first = experiment(tmp_path, net=hc.ModuleNet(mlp())).multitask(0).z0
    assert torch.equal(first, experiment(tmp_path, net=hc.ModuleNet(mlp()), train=False).multitask(0).z0)
    for other in hc.ModuleNet(mlp(1)), Probe(), None:
        with pytest.raises(RunError, match="multitask-0"):
            experiment(tmp_path, net=other, train=False).multitask(0)


def test_the_adapter_said_or_unsaid_is_the_same_part(tmp_path):
    first = experiment(tmp_path).multitask(0).z0
    assert torch.equal(first, experiment(tmp_path, net=hc.AdapterNet(EMBED, TINY.hidden), train=False).multitask(0).z0)


@nets
def test_trainings_lower_the_loss(ragged, name):
    "Multitask, MAML, conditional, FiLM, and an HVAE of fine-tuned networks, whose decoder makes better than random."
    net, batch = NETS[name](), ragged.ragged(ragged.all_ids, "all", sort=False)
    loss, e = lambda w: task_loss(w, batch, net).mean().item(), ragged.embeddings("clip")
    episodes, train = Episodes(tasks=5, support=3, query=3), TrainConfig(steps=60, lr=0.02)
    start = MNet(net)
    first = loss(start.z0[None].detach())
    run(fit_meta(start, ragged, train, episodes=episodes))
    shared = loss(start.z0[None].detach())
    assert shared < first
    for model, options in (
        (HNet(net, 4, (8,)), {"adaptation": Adaptation(steps=2, lr=0.1)}),
        (HNet(net, EMBED, (16,), start=start.z0.detach()), {"embeddings": e}),
        (FiLM(net, EMBED, (16,), start=start.z0.detach()), {"embeddings": e}),
    ):
        at = e if "embeddings" in options else model.z0.detach().expand(len(ragged), -1)
        before = loss(model(at).detach())
        run(fit_meta(model, ragged, replace(train, steps=40, lr=0.005), episodes=episodes, **options))
        assert loss(model(at).detach()) < before
    seen = draw_views(ragged, 3)
    w = finetune(start, ragged, Adaptation(steps=5, lr=0.02, optimizer="adam"), seen)
    assert w.isfinite().all() and loss(w[0]) < shared
    config = HVAEConfig(latent_size=3, hidden=(8,), components=4, scale="global", activation="silu")
    hvae = HVAE.make(net, w, start.z0, config)
    run(train_hvae(hvae, w, ragged, seen, replace(train, lr=3e-3), HVAELoss(loss="task", beta=0.01, batch=5)))
    with torch.no_grad():
        assert loss(hvae(hvae_latents(hvae, w)[0][0])) < loss(hvae(torch.randn(5, 3))) + 0.1


@nets
def test_logits_loss_and_gradient_are_each_tasks_own(ragged, name):
    "Against one task at a time and autograd; padded answers are -inf, and `out` may be the weights themselves."
    net, batch = NETS[name](), ragged.batch(ragged.all_ids, "all")
    w = weights(net, len(ragged))
    logits = net.logits(w, batch)
    assert logits.shape == (*batch.labels.shape, batch.answer_mask.shape[1])
    assert torch.equal(logits == -torch.inf, ~batch.answer_mask[:, None].expand_as(logits))
    leaf = w.clone().requires_grad_()
    (expected,) = torch.autograd.grad(task_loss(leaf, batch, net).sum(), leaf)
    buffer, apart = w.clone(), torch.empty_like(w)
    for given, out in (w, apart), (buffer, buffer):
        loss = net.loss_and_gradient(given, batch, out)
        torch.testing.assert_close(loss, task_loss(w, batch, net))
        torch.testing.assert_close(out, expected)
    for t in range(len(ragged)):
        one = batch.select(torch.tensor([t]))
        torch.testing.assert_close(net.logits(w[t : t + 1], one)[0], logits[t])
    shared = net.logits(w[:1], batch)
    torch.testing.assert_close(shared, net.logits(w[:1].repeat(len(ragged), 1), batch))
    with pytest.raises((ValueError, RuntimeError)):
        net.logits(w[:2], batch)


@nets
def test_second_derivatives(ragged, name):
    net, batch = NETS[name](), ragged.batch(ragged.all_ids[:2])
    batch = batch.to(torch.float64)
    w = weights(net, 2).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda w: task_loss(w, batch, net), w, nondet_tol=1e-8)


@nets
def test_fast_forms_agree_with_the_plain(ragged, name):
    net, batch = NETS[name](), ragged.ragged(ragged.all_ids)
    w = weights(net, len(ragged))
    plain, fast = w.clone().requires_grad_(), w.clone().requires_grad_()
    task_loss(plain, batch, net).sum().backward()
    first_order_loss(fast, batch, net).sum().backward()
    torch.testing.assert_close(fast.grad, plain.grad)
    hnet = HNet(net, 4, (8,), output_gain=0.5)
    z = torch.randn(len(ragged), 4)
    torch.testing.assert_close(task_energy(hnet, batch, once=True)(z), task_energy(hnet, batch)(z))


@nets
def test_film_at_the_identity_is_the_shared_network(ragged, name):
    net, batch = NETS[name](), ragged.batch(ragged.all_ids)
    w0 = weights(net, 1)[0]
    units = FiLMNet(net, w0)
    one = units.initial(torch.Generator())[None].expand(len(ragged), -1)
    assert torch.equal(modulate(w0, **units.split(one), net=net), w0.expand(len(ragged), -1))
    torch.testing.assert_close(units.logits(one, batch), net.logits(w0[None], batch))
    rows = sum(net.shapes[name][0] for name in modulated(net))
    assert units.shapes["scale"] == (rows,) and units.spec()["of"] == net.spec()


def test_film_scales_and_shifts_every_unit_of_a_perceptron(ragged):
    net, batch = hc.ModuleNet(mlp()), ragged.batch(ragged.all_ids[:1])
    scale, shift, w0 = torch.randn(1, 11), torch.randn(1, 11), net.initial()
    first, _, last = net.module(w0)
    hidden = (scale[0, :6] * first(batch.images[0]) + shift[0, :6]).tanh()
    expected = scale[0, 6:] * last(hidden) + shift[0, 6:]
    found = net.outputs(modulate(w0, scale, shift, net), batch)[0]
    torch.testing.assert_close(found, expected)


def test_examples_of_any_shape():
    images = torch.arange(2 * 5 * 3 * 2.0).view(2, 5, 3, 2)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    answers = torch.ones(2, 2, dtype=torch.bool)
    labels = torch.arange(10).view(2, 5) * mask
    batch = TaskBatch(images, labels, mask, torch.zeros(2, 2, 1), answers, torch.arange(2))
    some = examples_under(batch, mask, 3, torch.Generator().manual_seed(0))
    assert some.images.shape == (2, 3, 3, 2) and some.mask.all()
    assert torch.equal(some.images[..., 0, 0], 6.0 * (some.labels))  # each example with its own label


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.there, self.back = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.back.weight = self.there.weight

    def forward(self, x):
        return self.back(self.there(x))


def rectangle(*shape, answers=2, width=1):
    "Two tasks of three examples."
    real = torch.ones(2, answers, dtype=torch.bool)
    labels = torch.randint(answers, (2, 3))
    mask = torch.ones(2, 3, dtype=torch.bool)
    return TaskBatch(torch.randn(2, 3, *shape), labels, mask, torch.randn(2, answers, width), real, torch.arange(2))


@pytest.mark.parametrize("ending", ["there.weight", "back.weight", "weight"])
def test_a_parameter_with_two_names_is_one(ending):
    net, batch = hc.ModuleNet(Tied(), trainable=(ending,)), rectangle(3)
    w = torch.randn(2, 9)
    square = w.view(2, 3, 3)
    assert net.size == 9
    torch.testing.assert_close(net.outputs(w, batch), batch.images @ square.mT @ square.mT)
    module = net.module(w[0])
    torch.testing.assert_close(module(batch.images[0]), net.outputs(w, batch)[0])
    assert module.back.weight is module.there.weight


class Attend(nn.Module):
    "Attention over the parts of an example, fused where torch can."

    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x):
        q, k, v = self.inward(x)[:, None].chunk(3, -1)
        return self.outward(F.scaled_dot_product_attention(q, k, v)[:, 0].mean(1))


def test_attention_has_a_second_derivative_and_one_call_for_all_tasks(recwarn):
    net, batch = hc.ModuleNet(Attend()), rectangle(5, 4).to(torch.float64)
    w = weights(net, 2).double().requires_grad_()
    torch.testing.assert_close(net.outputs(w, batch)[1], net.module(w[1]).double()(batch.images[1]))
    assert torch.autograd.gradgradcheck(lambda w: task_loss(w, batch, net), w, nondet_tol=1e-8)
    assert not recwarn.list  # torch warns where vmap becomes a loop


def test_buffers_batch_norm_and_dropout():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(16, 3))
    body(torch.randn(9, 2, 4, 4) + 2)  # statistics that are not 0 and 1
    net, batch = hc.ModuleNet(body), rectangle(2, 4, 4)
    before = net.spec(), net.logits(net.initial()[None], batch)
    assert torch.equal(before[1], net.logits(net.initial()[None], batch))  # no dropout
    torch.testing.assert_close(before[1][0], body.eval()(batch.images[0])[:, :2])
    alone = net.logits(net.initial()[None], batch.select(torch.tensor([1])))
    torch.testing.assert_close(alone[0], before[1][1])  # batch norm mixes no examples
    body.train()(torch.randn(9, 2, 4, 4))  # a change of the original changes nothing
    assert body.training and all(p.requires_grad for p in body.parameters())
    torch.testing.assert_close(net.logits(net.initial()[None], batch), before[1])
    assert net.spec() == before[0] != hc.ModuleNet(body).spec()
    double = net.logits(net.initial()[None].double(), batch.to(torch.float64))
    assert double.dtype == torch.float64 and net.logits(net.initial()[None], batch).dtype == torch.float32
    torch.testing.assert_close(double.float(), before[1])


def test_what_is_no_base_network_is_refused():
    for exc, match, make in (
        (ValueError, "running statistics", lambda: hc.ModuleNet(nn.BatchNorm1d(3, track_running_stats=False))),
        (ValueError, "call it once first", lambda: hc.ModuleNet(nn.LazyLinear(2))),
        (ValueError, "parameters that can be generated", lambda: hc.ModuleNet(nn.ReLU())),
        (ValueError, "'1.wieght'", lambda: hc.ModuleNet(mlp(), trainable=("1.wieght",))),
        (TypeError, r"write \('weight',\)", lambda: hc.ModuleNet(mlp(), trainable="weight")),
        (TypeError, "nn.Module, got int", lambda: hc.ModuleNet(3)),
        (ValueError, "rank: expected at least 1", lambda: hc.LoRANet(mlp(), rank=0)),
        (ValueError, "names of matrices", lambda: hc.LoRANet(mlp(), match=("bias",))),
        (TypeError, r"ModuleNet\(Sequential", lambda: HNet(mlp())),
        (TypeError, "got int", lambda: MNet(7)),
        (TypeError, "Can't instantiate|abstract", lambda: type("Half", (BaseNet,), {})()),
    ):
        with pytest.raises(exc, match=match):
            make()
    batch = rectangle(EMBED, answers=3, width=4)
    for match, net in (
        ("K at least 3", hc.ModuleNet(mlp(outputs=2))),
        ("same each time", hc.ModuleNet(type("Noisy", (Tied,), {"forward": lambda s, x: F.dropout(s.there(x))})())),
        ("as long as the answers'", hc.LoRANet(mlp(outputs=7))),
    ):
        size = 3 if "same" in match else EMBED
        with pytest.raises(ValueError, match=match):
            net.logits(net.initial(torch.Generator())[None], replace(batch, images=batch.images[..., :size]))


def test_lora_is_the_module_with_a_change_of_low_rank(ragged):
    module = mlp(outputs=EMBED)
    net, batch = hc.LoRANet(module, rank=2, match=("0.weight", "2.weight")), ragged.batch(ragged.all_ids)
    assert net.size == 2 * (EMBED + 6) * 2
    assert list(net.shapes) == ["0.weight.A", "0.weight.B", "2.weight.A", "2.weight.B"]
    zero_shot = 100 * F.cosine_similarity(module(batch.images)[:, :, None], batch.answers[:, None], dim=-1)
    for w in net.initial(torch.Generator().manual_seed(0))[None], net.neutral()[None]:
        real = batch.answer_mask[:, None].expand(*zero_shot.shape)
        torch.testing.assert_close(net.logits(w, batch)[real], zero_shot[real], rtol=1e-4, atol=1e-3)
    w = weights(net, 1)[0]
    m, merged = {k: v[0] for k, v in net.split(w[None]).items()}, net.module(w)
    for i in 0, 2:
        change = merged[i].weight - module[i].weight
        torch.testing.assert_close(change, m[f"{i}.weight.B"] @ m[f"{i}.weight.A"])
        assert torch.linalg.matrix_rank(change.double(), atol=1e-5) == 2
    assert torch.equal(merged[0].bias, module[0].bias)


def linear_lora(rank=2):
    return hc.LoRANet(mlp(outputs=EMBED), rank=rank, match=("0.weight", "2.weight"))


def test_a_change_is_written_for_peft_and_read_back(tmp_path):
    net = linear_lora()
    w = weights(net, 1)[0]
    net.save_peft(tmp_path, w)
    assert torch.equal(net.load_peft(tmp_path), w)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 2)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 4}))
    torch.testing.assert_close(net.changed(net.load_peft(tmp_path)[None])["0.weight"], _twice(net, w)["0.weight"])
    with pytest.raises(FileError, match=r"lora_A.weight' \[3, 12\], found \[2, 12\]"):
        linear_lora(3).load_peft(tmp_path)
    with pytest.raises(FileError, match="found also .*2.lora_A"):
        hc.LoRANet(mlp(outputs=EMBED), rank=2, match=("0.weight",)).load_peft(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FileError, match="expected a safetensors file"):
        net.load_peft(tmp_path)


def _twice(net, w):
    "Matrices with the change doubled: what a `lora_alpha` of 2 r means."
    once, none = net.changed(w[None]), net.changed(net.neutral()[None])
    return {name: 2 * once[name] - none[name] for name in once}


def test_peft_reads_a_generated_change(tmp_path):
    "And answers the same; and what peft writes is read here."
    peft = pytest.importorskip("peft", reason="an extra: pip install peft")
    net, x = linear_lora(), torch.randn(4, EMBED)
    w = weights(net, 1)[0]
    net.save_peft(tmp_path / "ours", w)
    theirs = peft.PeftModel.from_pretrained(mlp(outputs=EMBED), str(tmp_path / "ours"))
    torch.testing.assert_close(theirs(x), net.module(w)(x))
    torch.testing.assert_close(theirs.merge_and_unload()(x), net.module(w)(x))
    theirs = peft.PeftModel.from_pretrained(mlp(outputs=EMBED), str(tmp_path / "ours"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert torch.equal(net.load_peft(tmp_path / "theirs"), w)


class Line(BaseNet):
    "Least squares: labels are numbers."

    shapes = {"slope": (1,), "offset": ()}

    def initial(self, generator):
        return torch.zeros(2)

    def logits(self, w, batch):
        m = self.split(w)
        return batch.images * m["slope"][:, None] + m["offset"][:, None, None]

    def loss(self, w, batch):
        return mean_over_examples((self.logits(w, batch)[..., 0] - batch.labels).square(), batch)

    def spec(self):
        return {"net": "Line"}


def test_a_regression_is_learnt_by_the_same_code():
    "Two tasks with known lines; adaptation and a hypernetwork find them."
    x, truth, net = torch.linspace(-1, 1, 9).repeat(2, 1)[..., None], torch.tensor([[2.0, 1.0], [-1.0, 0.5]]), Line()
    alone = torch.ones(2, 1, dtype=torch.bool)
    batch = TaskBatch(x, x[..., 0], x[..., 0] < 9, torch.zeros(2, 1, 1), alone, torch.arange(2))
    batch = replace(batch, labels=net.logits(truth, batch)[..., 0])
    model = MNet(net)
    found = adapt(model, model.z0.detach(), batch, Adaptation(steps=200, lr=0.3))
    torch.testing.assert_close(found, truth, atol=1e-3, rtol=0)
    tasks = [hc.TensorTask(f"line {t}?", (), torch.arange(9) + 9 * t, batch.labels[t]) for t in range(2)]
    code = {"line 0?": torch.tensor([1.0, 0.0]), "line 1?": torch.tensor([0.0, 1.0])}
    lines = TaskSet.from_tensors(x.flatten(0, 1), tasks, embed_question=code.__getitem__)
    hnet, e = HNet(net, 2, (8,)), lines.embeddings("text")
    run(
        fit_meta(
            hnet, lines, TrainConfig(steps=300, lr=0.02), embeddings=e, episodes=Episodes(tasks=2, support=4, query=4)
        )
    )
    torch.testing.assert_close(hnet(e), truth, atol=0.1, rtol=0)


# --- logits that are all zero


@pytest.mark.parametrize("head", [nn.Linear(EMBED, 5), nn.Sequential(nn.Linear(EMBED, 5), nn.ReLU())])
def test_a_network_that_answers_zeros_has_an_accuracy(ragged, head):
    net, batch = hc.ModuleNet(head), ragged.batch(ragged.all_ids, "query")
    w = torch.zeros(1, net.size)
    logits = net.logits(w, batch)
    assert not net.cosine and not logits[logits.isfinite()].any()
    first = mean_over_examples((batch.labels == 0).float(), batch)  # the first answer, as of any tie
    assert torch.equal(set_accuracy(w, ragged, net), first)
    assert hc.accuracy(net, w.expand(2, 1, -1), ragged) == pytest.approx(first.mean().item())
    w[0, -1] = torch.nan
    with pytest.raises(NumbersError, match="logits: expected finite numbers, got"):
        set_accuracy(w, ragged, net)


def test_cosines_that_are_all_zero_are_refused(ragged):
    ragged.images[:] = 0
    lora = hc.LoRANet(nn.Linear(EMBED, EMBED, bias=False), 2)
    for net in (hc.AdapterNet(EMBED, 4), lora):
        assert net.cosine
        with pytest.raises(NumbersError, match="that are not all 0"):
            set_accuracy(net.neutral()[None], ragged, net)
        with pytest.raises(NumbersError, match="that are not all 0"):
            hc.accuracy(net, net.neutral().expand(2, 1, -1), ragged)
