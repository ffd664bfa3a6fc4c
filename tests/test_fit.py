"The verbs of the front door on small networks of several kinds: shapes, seeds, oracles, and what is refused."

import zlib
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import nn

import hyperclip_nb as hc
from hyperclip_nb.core.blocks import NumbersError
from hyperclip_nb.core.training import TrainConfig
from hyperclip_nb.evaluation.fit import FIT
from hyperclip_nb.guidance.guide import Guidance
from hyperclip_nb.hypernet.metatrain import Adaptation, Episodes

SHORT = replace(
    FIT,
    views=2,
    episodes=Episodes(tasks=6, support=4, query=4),
    inner=Adaptation(steps=2, lr=0.1),
    finetuned=Adaptation(steps=3, lr=0.03, optimizer="adam"),
    stored=Adaptation(steps=2, lr=0.1),
    hvae=replace(FIT.hvae, latent_size=4, hidden=(8,), components=6),
    hyperclip=replace(FIT.hyperclip, components=4, hidden=(8,), size=4, text_hidden=(8,)),
    latent_size=4,
    hnet_hidden=(8,),
    conditional_hidden=(8,),
    regression_size=3,
    regression_heads=2,
    **{
        name: TrainConfig(steps=4, lr=1e-3)
        for name in (
            "multitask",
            "conditional",
            "film",
            "conditional_maml",
            "hnet",
            "hvae_training",
            "question_regression",
            "hyperldm",
            "hyperclip_training",
        )
    },
)
word = lambda text, size: torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


def task_set(count=12, shape=(5,), answers=2, seed=0, regression=False):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(60, *shape, generator=g)
    tasks = []
    for i in range(count):
        rows = torch.randperm(60, generator=g)[: 14 + i % 3]
        labels = x[rows].flatten(1)[:, i % 3] if regression else torch.arange(len(rows)) % answers
        tasks.append(
            hc.TensorTask(f"is it {i}?", [] if regression else [f"a{c}" for c in range(answers)], rows, labels)
        )
    return hc.TaskSet.from_tensors(
        x, tasks, embed_question=lambda q: word(q, 6), embed_answer=lambda a: word(a, shape[-1])
    )


def mlp(size=5, answers=3):
    torch.manual_seed(0)
    return hc.ModuleNet(nn.Sequential(nn.Linear(size, 4), nn.Tanh(), nn.Linear(4, answers)))


@pytest.fixture(scope="module")
def fitted():
    "Everything that reads questions, on one small network, and its tasks."
    net, tasks = mlp(), task_set()
    start = hc.fit_multitask(net, tasks, recipe=SHORT)
    generator = hc.fit_hvae(net, tasks, start, recipe=SHORT)
    return net, tasks, start, generator, hc.fit_hyperldm(generator, tasks, recipe=SHORT)


# --- accuracy


def test_accuracy_is_the_mean_over_tasks_of_right_answers(fitted):
    net, tasks, *_ = fitted
    w = torch.randn(3, len(tasks), net.size, generator=torch.Generator().manual_seed(0))

    def plain(weights):  # [K, T, P]: one task at a time, one example at a time
        shares = []
        for t in range(len(tasks)):
            batch = tasks.batch(torch.tensor([t]), "query")
            mean = sum(net.logits(weights[k, t][None], batch)[0].softmax(-1) for k in range(len(weights)))
            shares.append((mean.argmax(-1) == batch.labels[0]).float().mean().item())
        return sum(shares) / len(shares)

    assert hc.accuracy(net, w, tasks) == pytest.approx(plain(w), abs=1e-6)
    assert hc.accuracy(net, w[0], tasks) == pytest.approx(plain(w[:1]), abs=1e-6)
    assert hc.accuracy(net, w[0, :1], tasks) == pytest.approx(plain(w[:1, :1].expand(1, len(tasks), -1)), abs=1e-6)
    assert hc.accuracy(net, w, tasks, numbers=1) == hc.accuracy(net, w, tasks)  # in pieces of one task
    assert hc.accuracy(net, w, tasks, "support") != hc.accuracy(net, w, tasks)
    each = hc.accuracies(net, w, tasks)
    assert each.shape == (len(tasks),) and each.mean().item() == pytest.approx(hc.accuracy(net, w, tasks))
    torch.testing.assert_close(hc.accuracies(net, w[0], tasks), hc.set_accuracy(w[0], tasks, net))


def test_accuracy_refuses_weights_that_do_not_fit(fitted):
    net, tasks, *_ = fitted
    w = torch.zeros(len(tasks), net.size)
    for bad, error, message in [
        (w[:, :-1], ValueError, rf"w: expected weights \[..., T, {net.size}\], got \[12, {net.size - 1}\]"),
        (w[:5], ValueError, r"of 1 or 12 tasks, got \[1, 5"),
        (w[None, None], ValueError, "expected weights"),
        (None, TypeError, "got None"),
        (w + torch.nan, NumbersError, "w: expected finite numbers"),
        (w.double(), ValueError, "of torch.float32, as the parameters are, got torch.float64"),
    ]:
        with pytest.raises((error, ValueError), match=message):
            hc.accuracy(net, bad, tasks)
    with pytest.raises(TypeError, match="expected a TaskSet"):
        hc.accuracy(net, w, tasks.tasks)


# --- every verb


def test_every_verb_gives_weights_for_questions_it_never_saw(fitted):
    net, tasks, start, generator, ldm = fitted
    new = task_set(count=5, seed=3).embeddings("text")
    assert start.z0.shape == (net.size,)
    for kind in "cond_multitask", "cond_multitask_film", "cond_hnet_maml":
        assert hc.fit_conditional(net, tasks, start, kind=kind, recipe=SHORT)(new).shape == (5, net.size)
    for made in generator, hc.fit_hnet(net, tasks, start, recipe=SHORT):
        assert made.latents.shape == (2, len(tasks), 4) and made(made.latents).shape == (2, len(tasks), net.size)
        assert made.z0.shape == (4,) and made.net is net
        w = hc.fit_hyperldm(made, tasks, recipe=SHORT).sample(new, samples=3, check=False)
        assert w.shape == (3, 5, net.size) and w.isfinite().all() and not w.requires_grad
        assert hc.fit_question_regression(made, tasks, recipe=SHORT)(new).shape == (5, net.size)
        guided = hc.fit_hyperclip(made, tasks, recipe=SHORT)
        assert guided.guide(new, Guidance(steps=2)).shape == (5, net.size)
        assert not torch.equal(guided.guide(new, Guidance(steps=0)), guided.guide(new, Guidance(steps=2)))


@pytest.mark.parametrize(
    "net, shape",
    [
        (hc.AdapterNet(5, 3), (5,)),
        (hc.ModuleNet(nn.Sequential(nn.Flatten(), nn.Linear(12, 2))), (3, 2, 2)),
        (hc.LoRANet(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5)), rank=2), (5,)),
    ],
    ids=["adapter", "module", "lora"],
)
def test_any_base_network_and_examples_of_any_shape(net, shape):
    tasks = task_set(shape=shape)
    generator = hc.fit_hvae(net, tasks, recipe=SHORT)
    w = hc.fit_hyperldm(generator, tasks, recipe=SHORT).sample(tasks.embeddings("text"), samples=2, check=False)
    assert 0 <= hc.accuracy(net, w, tasks) <= 1 and w.shape == (2, 12, net.size)


def test_a_regression_is_trained_by_the_networks_own_loss():
    class Heights(hc.ModuleNet):
        def loss(self, w, batch):
            error = (self.outputs(w, batch)[..., 0] - batch.labels).square() * batch.mask
            return error.sum(1) / batch.mask.sum(1)

    net, tasks = Heights(nn.Linear(5, 1)), task_set(regression=True)
    recipe = replace(SHORT, conditional=TrainConfig(steps=200, lr=1e-2), conditional_noise=0.0, conditional_dropout=0.0)
    losses: list[float] = []
    start = hc.fit_multitask(net, tasks, recipe=SHORT)
    conditional = hc.fit_conditional(
        net, tasks, start, recipe=recipe, wrap=lambda updates: (losses.append(u.loss) or u for u in updates)
    )
    assert len(losses) == 200 and sum(losses[-20:]) < 0.3 * sum(losses[:20])
    w = hc.fit_hyperldm(hc.fit_hvae(net, tasks, start, recipe=SHORT), tasks, recipe=SHORT).sample(
        tasks.embeddings("text"), check=False
    )
    batch = tasks.batch(tasks.all_ids, "query")
    assert net.loss(w[0], batch).isfinite().all()
    assert net.loss(conditional(tasks.embeddings("text")), batch).mean() < net.loss(start.z0[None], batch).mean()
    with pytest.raises(ValueError, match="expected answers to choose from"):
        hc.accuracy(net, w, tasks)


# --- settings


def test_seeds_steps_and_settings_reach_the_training(fitted):
    net, tasks, start, *_ = fitted
    same = hc.fit_multitask(net, tasks, recipe=SHORT)
    assert torch.equal(same.z0, start.z0)
    assert not torch.equal(hc.fit_multitask(net, tasks, seed=1, recipe=SHORT).z0, start.z0)
    assert not torch.equal(hc.fit_multitask(net, tasks, lr=1e-2, recipe=SHORT).z0, start.z0)
    seen: list[int] = []

    def counted(updates):
        for update in updates:
            seen.append(update.step)
            yield update
            if update.step == 5:
                return

    hc.fit_multitask(net, tasks, steps=3, recipe=SHORT, wrap=counted)
    hc.fit_multitask(net, tasks, steps=9, recipe=SHORT, wrap=counted)  # stopped early by its wrapper
    assert seen == [1, 2, 3, 1, 2, 3, 4, 5]
    assert hc.fit_hvae(net, tasks, start, views=3, recipe=SHORT).latents.shape == (3, len(tasks), 4)
    with pytest.raises(ValueError, match="TrainConfig.steps"):
        hc.fit_multitask(net, tasks, steps=0, recipe=SHORT)
    with pytest.raises(ValueError, match="kind: expected one of cond_multitask"):
        hc.fit_conditional(net, tasks, start, kind="film")
    with pytest.raises(ValueError, match=r"question encoder out of \['text'\], got 'clip'"):
        hc.fit_conditional(net, tasks, start, encoder="clip")


def test_validation_tasks_choose_the_step(fitted):
    net, tasks, *_ = fitted
    val, recipe = task_set(count=6, seed=5), replace(SHORT, multitask=TrainConfig(steps=150, lr=0.1))
    found = {}

    def watched(updates):
        for update in updates:
            yield update
            if update.step % 100 == 0 or update.step == 150:
                found[update.step] = hc.accuracy(net, updates.model.z0[None], val)

    chosen = hc.fit_multitask(net, tasks, val=val, recipe=recipe, wrap=watched)
    assert hc.accuracy(net, chosen.z0[None], val) == max(found.values())


def test_what_is_trained_on_a_generator_needs_its_tasks(fitted):
    net, tasks, start, generator, ldm = fitted
    again = task_set()  # the same content, made anew
    hc.fit_question_regression(generator, again, recipe=SHORT)
    for fit in hc.fit_hyperldm, hc.fit_hyperclip, hc.fit_question_regression:
        with pytest.raises(ValueError, match="expected the 12 tasks that the generator was trained on"):
            fit(generator, task_set(seed=1), recipe=SHORT)
    with pytest.raises(TypeError, match=r"ModuleNet\(Linear\(...\)\) makes one"):
        hc.fit_multitask(nn.Linear(5, 2), tasks)
    with pytest.raises(TypeError, match="tasks: expected a TaskSet"):
        hc.fit_multitask(net, tasks.tasks)
    with pytest.raises(ValueError, match=r"e: expected embeddings \[T, 6\], got \[2, 5\]"):
        ldm.sample(torch.zeros(2, 5))


def test_a_question_gets_the_same_networks_alone_or_among_others(fitted):
    _, tasks, _, _, ldm = fitted
    e = tasks.embeddings("text")
    of = lambda e, **options: ldm.sample(e, guidance=1.5, check=False, **options)
    ten = of(e, samples=10)
    torch.testing.assert_close(of(e)[0], ten[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of(e[3:4], samples=10)[:, 0], ten[:, 3], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(of(e, seed=1), ten[:1]) and not torch.allclose(ten[0], ten[1])


def test_the_walk_of_the_sampler_ends_at_the_latents(fitted):
    _, tasks, _, generator, ldm = fitted
    how = {"guidance": 1.5, "samples": 3, "seed": 2, "check": False}
    path = [*ldm.path(tasks.embeddings("text")[:4], **how)]
    assert len(path) == ldm.recipe.diffusion.timesteps + 1 and {z.shape for z in path} == {(3, 4, 4)}
    assert torch.equal(path[-1], ldm.latents(tasks.embeddings("text")[:4], **how))
    assert torch.equal(generator(path[-1]), ldm.sample(tasks.embeddings("text")[:4], **how))
    assert len([*ldm.path(tasks.embeddings("text"), sampler="ddim", steps=7, check=False)]) == 8
    with pytest.raises(ValueError, match=r"e: expected embeddings \[T, 6\]"):
        ldm.path(torch.zeros(2, 5))


def test_what_was_fitted_moves_as_one_module(fitted):
    _, tasks, _, generator, ldm = fitted
    e = tasks.embeddings("text")
    before = ldm.sample(e, check=False)
    try:
        after = ldm.to(torch.float64).sample(e.double(), check=False)
        assert after.dtype == torch.float64 and generator.latents.dtype == torch.float64
    finally:
        ldm.to(torch.float32)
    assert torch.equal(ldm.sample(e, check=False), before)


# --- a data set of somebody else: ../shared/accept/a2_tensors.py, shortened


def test_words_make_networks_for_digits_that_beat_one_network_for_all():
    digits = pytest.importorskip("sklearn.datasets", reason="pip install scikit-learn").load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    embed = lambda text: torch.stack([word(w, 32) for w in text.strip("?").replace(",", "").split()]).sum(0) / 2
    rules = {f"Is it greater than {t}?": (["no", "yes"], [k > t for k in range(10)]) for t in range(9)}
    rules |= {
        f"Is it {a} or {b}?": (["no", "yes"], [k in (a, b) for k in range(10)]) for a, b in combinations(range(10), 2)
    }
    rules |= {
        f"Which of {', '.join(map(str, c))} is it?": ([*map(str, c)], [c.index(k) if k in c else -1 for k in range(10)])
        for c in combinations(range(10), 3)
    }
    g, tasks = torch.Generator().manual_seed(0), []
    for question, (answers, labels) in rules.items():
        label = torch.tensor(labels).long()[y]
        rows = torch.randperm(len(y), generator=g)
        rows = rows[label[rows] >= 0][:80]
        tasks.append(hc.TensorTask(question, answers, rows, label[rows]))
    tasks = [tasks[i] for i in torch.randperm(len(tasks), generator=g)]
    train, test = (hc.TaskSet.from_tensors(x, part, embed_question=embed) for part in (tasks[:-30], tasks[-30:]))
    torch.manual_seed(0)
    net, e = hc.ModuleNet(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))), test.embeddings("text")
    start = hc.fit_multitask(net, train, steps=150)
    conditional = hc.fit_conditional(net, train, start, steps=300)
    generator = hc.fit_hvae(net, train, start, views=2, steps=250)
    ldm = hc.fit_hyperldm(generator, train, steps=300)
    shared = hc.accuracy(net, start.z0[None], test)
    assert hc.accuracy(net, conditional(e), test) > shared + 0.2
    assert hc.accuracy(net, ldm.sample(e, guidance=1.5, samples=10), test) > shared + 0.2


@pytest.mark.parametrize(
    "net, said",
    [
        (hc.ModuleNet(nn.Linear(6, 2)), r"examples \[5\] of torch.float32.*but: "),
        (hc.ModuleNet(nn.Conv2d(3, 2, 1)), r"examples \[5\] of torch.float32.*but: "),
        (hc.AdapterNet(5, 2), "vectors of the answers .embed_answer=….*AdapterNet"),
    ],
)
def test_a_network_that_cannot_read_the_tasks_is_refused_in_a_sentence(net, said):
    bare = hc.TaskSet.from_tensors(
        torch.randn(20, 5),
        [hc.TensorTask(f"{i}?", ["a", "b"], range(20), torch.arange(20) % 2) for i in range(2)],
        embed_question=lambda text: word(text, 3),
    )
    for verb in (hc.fit_multitask, hc.fit_conditional, hc.fit_hnet, hc.fit_hvae):
        with pytest.raises(ValueError, match=said):
            verb(net, bare, recipe=SHORT)


def test_a_regression_needs_a_network_with_a_loss_for_it():
    with pytest.raises(ValueError, match=r"labels torch.float32 \(a regression\)"):
        hc.fit_multitask(hc.ModuleNet(nn.Linear(5, 1)), task_set(regression=True), recipe=SHORT)


def test_a_start_and_a_generator_are_those_of_the_verbs(fitted):
    net, tasks, *_ = fitted
    other = hc.fit_multitask(hc.ModuleNet(nn.Linear(5, 7)), tasks, recipe=SHORT)
    for verb in (hc.fit_conditional, hc.fit_hnet, hc.fit_hvae):
        with pytest.raises(
            ValueError, match=r"start: expected weights of the base network's .*, got those of .*\(7, 5\)"
        ):
            verb(net, tasks, other, recipe=SHORT)
        with pytest.raises(TypeError, match="start: expected what `fit_multitask` gives, got Parameter"):
            verb(net, tasks, other.z0, recipe=SHORT)
    for verb in (hc.fit_hyperldm, hc.fit_hyperclip, hc.fit_question_regression):
        for wrong in (other, net):
            with pytest.raises(TypeError, match="generator: expected what `fit_hvae` or `fit_hnet` gives"):
                verb(wrong, tasks, recipe=SHORT)


def test_no_questions_give_no_networks(fitted):
    net, tasks, *_ = fitted
    none = tasks.embeddings("text")[:0]
    start = hc.fit_multitask(net, tasks, recipe=SHORT)
    for fit in (hc.fit_hnet, hc.fit_hvae):
        ldm = hc.fit_hyperldm(fit(net, tasks, start, recipe=SHORT), tasks, recipe=SHORT)
        assert ldm.sample(none, samples=2).shape == (2, 0, net.size)
    assert hc.fit_conditional(net, tasks, start, recipe=SHORT)(none).shape == (0, net.size)
