"""Generate the weights of a network for a task that is only described in words.

    import hyperclip_nb as hc

gives the nouns and verbs of the tour (nbs/00_tour.ipynb), each imported when it is first used; `dir(hc)` lists them.
Everything else is imported from its module, such as `hyperclip_nb.core.runs`. This file is written by hand; nbdev sets
the version and nothing else.
"""

__version__ = "0.1.0"

import importlib
import sys
from typing import TYPE_CHECKING

_HOME = {  # name -> module, in the order of the tour
    # from the words to the answers
    "scenes_experiment": "evaluation.experiment",
    "open_experiment": "evaluation.asking",
    "ask": "evaluation.asking",
    "weights_for_question": "evaluation.asking",
    "sheet_figure": "evaluation.asking",
    "TextToWeights": "evaluation.pretrained",
    "Adapter": "evaluation.generated",
    "export_run": "evaluation.export",
    # data set
    "Task": "dataset.tasks",
    "TaskSet": "dataset.batches",
    "TensorTask": "dataset.tensors",
    "FeatureBank": "dataset.features",
    "ClipEncoder": "dataset.encoders",
    "load_small_clip": "dataset.small_clip",
    "scenes_bank": "dataset.sources",
    # base network
    "BaseNet": "basenet.network",
    "AdapterNet": "basenet.adapter",
    "ModuleNet": "basenet.module",
    "LoRANet": "basenet.lora",
    "adapter_logits": "basenet.adapter",
    "set_accuracy": "basenet.network",
    # hypernetworks
    "MNet": "hypernet.hypernetworks",
    "HNet": "hypernet.hypernetworks",
    "HVAE": "hypernet.hvae",
    "TrainConfig": "core.training",
    "fit_meta": "hypernet.metatrain",
    "Adaptation": "hypernet.metatrain",
    "adapt": "hypernet.metatrain",
    "store_adaptations": "hypernet.store",
    # guidance
    "HyperCLIP": "guidance.hyperclip",
    "Guidance": "guidance.guide",
    "guide": "guidance.guide",
    "QuestionRegression": "guidance.question_regression",
    "descend": "core.energy",
    "trajectory": "core.energy",
    # diffusion
    "DiffusionConfig": "diffusion.schedule",
    "HyperLDM": "diffusion.hyperldm",
    "train_hyperldm": "diffusion.hyperldm",
    "sample_ddpm": "diffusion.sampling",
    "with_cfg": "diffusion.sampling",
    # all of it in one call each, on one's own tensors
    "fit_multitask": "evaluation.fit",
    "fit_conditional": "evaluation.fit",
    "fit_hnet": "evaluation.fit",
    "fit_hvae": "evaluation.fit",
    "fit_question_regression": "evaluation.fit",
    "fit_hyperclip": "evaluation.fit",
    "fit_hyperldm": "evaluation.fit",
    "accuracy": "evaluation.fit",
    "accuracies": "evaluation.fit",
    "compare": "evaluation.compare",
    "save_fitted": "evaluation.keep",
    "load_fitted": "evaluation.keep",
    # pictures, tables, and the explorer
    "house_style": "plots.style",
    "reproduce": "evaluation.reproduce",
    "read_results": "evaluation.results",
    "explore": "explorer.widgets",
    "explore_digits": "explorer.digits",
}

if TYPE_CHECKING:  # the same for type checkers and editors; tests/test_front.py compares the two
    from .basenet.adapter import AdapterNet as AdapterNet
    from .basenet.adapter import adapter_logits as adapter_logits
    from .basenet.lora import LoRANet as LoRANet
    from .basenet.module import ModuleNet as ModuleNet
    from .basenet.network import BaseNet as BaseNet
    from .basenet.network import set_accuracy as set_accuracy
    from .core.energy import descend as descend
    from .core.energy import trajectory as trajectory
    from .core.training import TrainConfig as TrainConfig
    from .dataset.batches import TaskSet as TaskSet
    from .dataset.encoders import ClipEncoder as ClipEncoder
    from .dataset.features import FeatureBank as FeatureBank
    from .dataset.small_clip import load_small_clip as load_small_clip
    from .dataset.sources import scenes_bank as scenes_bank
    from .dataset.tasks import Task as Task
    from .dataset.tensors import TensorTask as TensorTask
    from .diffusion.hyperldm import HyperLDM as HyperLDM
    from .diffusion.hyperldm import train_hyperldm as train_hyperldm
    from .diffusion.sampling import sample_ddpm as sample_ddpm
    from .diffusion.sampling import with_cfg as with_cfg
    from .diffusion.schedule import DiffusionConfig as DiffusionConfig
    from .evaluation.asking import ask as ask
    from .evaluation.asking import open_experiment as open_experiment
    from .evaluation.asking import sheet_figure as sheet_figure
    from .evaluation.asking import weights_for_question as weights_for_question
    from .evaluation.compare import compare as compare
    from .evaluation.experiment import scenes_experiment as scenes_experiment
    from .evaluation.export import export_run as export_run
    from .evaluation.fit import accuracies as accuracies
    from .evaluation.fit import accuracy as accuracy
    from .evaluation.fit import fit_conditional as fit_conditional
    from .evaluation.fit import fit_hnet as fit_hnet
    from .evaluation.fit import fit_hvae as fit_hvae
    from .evaluation.fit import fit_hyperclip as fit_hyperclip
    from .evaluation.fit import fit_hyperldm as fit_hyperldm
    from .evaluation.fit import fit_multitask as fit_multitask
    from .evaluation.fit import fit_question_regression as fit_question_regression
    from .evaluation.generated import Adapter as Adapter
    from .evaluation.keep import load_fitted as load_fitted
    from .evaluation.keep import save_fitted as save_fitted
    from .evaluation.pretrained import TextToWeights as TextToWeights
    from .evaluation.reproduce import reproduce as reproduce
    from .evaluation.results import read_results as read_results
    from .explorer.digits import explore_digits as explore_digits
    from .explorer.widgets import explore as explore
    from .guidance.guide import Guidance as Guidance
    from .guidance.guide import guide as guide
    from .guidance.hyperclip import HyperCLIP as HyperCLIP
    from .guidance.question_regression import QuestionRegression as QuestionRegression
    from .hypernet.hvae import HVAE as HVAE
    from .hypernet.hypernetworks import HNet as HNet
    from .hypernet.hypernetworks import MNet as MNet
    from .hypernet.metatrain import Adaptation as Adaptation
    from .hypernet.metatrain import adapt as adapt
    from .hypernet.metatrain import fit_meta as fit_meta
    from .hypernet.store import store_adaptations as store_adaptations
    from .plots.style import house_style as house_style

else:  # hidden from type checkers, so that they find a misspelt name

    def __getattr__(name: str) -> object:
        "Import a name of `_HOME` when it is first asked for."
        if name not in _HOME:
            message = f"module 'hyperclip_nb' has no name {name!r}; dir(hyperclip_nb) lists those it has"
            raise AttributeError(message, name=name, obj=sys.modules[__name__])
        from .core.helptext import explain  # the comments beside parameters, for `help`

        value = explain(getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name))
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return ["__version__", *_HOME]
