"The pipeline on a toy data set: what is cached, what leaks, what is refused."
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ToyBank, toy_tasks

from hyperclip_nb.diffusion import DiffusionConfig
from hyperclip_nb.experiment import Experiment, Recipe, evaluate_methods, score_shuffled, score_zero_shot, zero_shot_methods
from hyperclip_nb.files import RunError
from hyperclip_nb.hyperldm import DenoiserConfig, LDMConfig
from hyperclip_nb.metatrain import Adaptation
from hyperclip_nb.results import tabulate
from hyperclip_nb.runs import Run
from hyperclip_nb.training import TrainConfig

short = TrainConfig(steps=4, lr=1e-3)
TINY = Recipe(hidden=3, directions=4, multitask=short, conditional=short, conditional_hidden=(6,), hnet=short, latent_size=5, hnet_hidden=(6,),
              inner=Adaptation(steps=2, lr=0.1), stored=Adaptation(steps=3, lr=0.1), views=2, hyperldm=short,
              diffusion=DiffusionConfig(timesteps=6, schedule="cosine", prediction="v"), denoiser=DenoiserConfig(hidden=8, depth=2),
              ldm=LDMConfig(batch=8, drop=0.1), few_shot_steps=(1, 3))


def experiment(folder, recipe=TINY, **options):
    tasks = toy_tasks([(6 + t % 4, 3 + t % 3, 2 + t % 3) for t in range(16)])
    bank = ToyBank(tasks)
    bank.manifest = SimpleNamespace(files={"images": "x"})
    splits = {"train": tasks[:8], "val": tasks[8:11], "test": tasks[11:]}
    return Experiment(splits, bank, Run.create(folder, {}), recipe, report=lambda text: None, **options)


def test_the_whole_table_is_made_and_a_second_run_gives_the_same_numbers(tmp_path):
    scores, chosen = evaluate_methods(experiment(tmp_path / "a"), [0, 1])
    again, _ = evaluate_methods(experiment(tmp_path / "b"), [0, 1])
    resumed, _ = evaluate_methods(experiment(tmp_path / "a", train=False), [0, 1])
    assert chosen["few_shot"]["steps"] in TINY.few_shot_steps
    for name, values in scores.items():
        assert torch.equal(values, again[name]) and torch.equal(values, resumed[name]), name
        assert values.shape[1] == 5 and (0 <= values).all() and (values <= 100).all()
    results = tabulate(scores, n=torch.tensor([3] * 5), dataset="toy", world_seed=None, seeds=[0, 1], tasks={"test": 5}, wall_s=1.0, chosen=chosen)
    assert {"chance", "majority", "clip_zero_shot", "multitask", "hnet_maml", "cond_multitask", "cond_multitask+shuffled", "hnet_hyperldm_g1",
            "hnet_hyperldm_g1.5", "hnet_hyperldm_g1.5+shuffled", "few_shot"} <= {row.method for row in results.rows}


def test_a_run_that_dies_between_parts_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    whole = experiment(tmp_path / "whole").hyperldm(0).denoiser.state_dict()
    broken = experiment(tmp_path / "broken")
    monkeypatch.setattr("hyperclip_nb.experiment.store_adaptations", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): broken.hyperldm(0)
    monkeypatch.undo()
    assert {p.name for p in (tmp_path / "broken").glob("*.safetensors")} == {"multitask-0.safetensors", "hnet_maml-0.safetensors"}
    resumed = experiment(tmp_path / "broken").hyperldm(0).denoiser.state_dict()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_parts_of_other_settings_or_data_are_not_used(tmp_path):
    first = experiment(tmp_path).hnet(0).head.bias.clone()
    assert torch.equal(first, experiment(tmp_path, train=False).hnet(0).head.bias)
    for recipe in (replace(TINY, anchor=0.5), replace(TINY, hnet=TrainConfig(steps=5, lr=1e-3))):
        with pytest.raises(RunError, match="hnet_maml-0"): experiment(tmp_path, recipe, train=False).hnet(0)
    x = experiment(tmp_path, train=False)
    x.data = "other"
    with pytest.raises(RunError, match="multitask-0"): x.hnet(0)  # what it starts from is missing too


def test_zero_shot_methods_see_nothing_but_questions(tmp_path):
    "Labels of test tasks must not reach the networks: permuting them changes scores, never weights."
    x = experiment(tmp_path)
    methods, ids = zero_shot_methods(x, 0), x.sets["test"].all_ids
    draw = lambda: {name: m(x.questions["test"], torch.Generator().manual_seed(0)) for name, m in methods.items()}
    before = draw()
    x.sets["test"]._labels = x.sets["test"]._labels.flip(0)
    after = draw()
    assert all(torch.equal(before[name], after[name]) for name in methods)
    same = x.questions["test"][:1].expand(len(ids), -1)
    w = methods["cond_multitask"](same, None)
    torch.testing.assert_close(w[0], w[0, :1].expand(len(ids), -1))


def test_unconditional_rows_do_not_change_with_shuffled_questions(tmp_path):
    x = experiment(tmp_path)
    methods = zero_shot_methods(x, 0)
    assert torch.equal(score_zero_shot(x, methods["multitask"], 0), score_shuffled(x, methods["multitask"], 0))
    w = [methods["cond_multitask"](q, None) for q in (x.questions["test"], x.questions["test"].flip(0))]
    assert not torch.allclose(w[0], w[1])


def test_chunks_do_not_change_scores(tmp_path):
    x = experiment(tmp_path)
    weights = torch.randn(4, 5, x.layout.size, generator=torch.Generator().manual_seed(0))
    whole, pieces = (x.score("test", lambda ids: weights[:, ids], limit=limit) for limit in (10 ** 9, 1))
    assert torch.equal(whole, pieces)
