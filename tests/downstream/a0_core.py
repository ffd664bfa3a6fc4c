# /// script
# dependencies = ["hyperclip_nb"]
# ///
"Diffusion over one's own latents, with nothing but what the package itself asks for."

from importlib.metadata import version
from importlib.resources import files

import torch

import hyperclip_nb as hc
from hyperclip_nb.core.blocks import Standardizer
from hyperclip_nb.core.training import last

assert hc.__version__ == version("hyperclip_nb") and files("hyperclip_nb").joinpath("py.typed").is_file()
noise = torch.Generator().manual_seed(0)
e = torch.randn(60, 4, generator=noise)  # what the questions' encoder says
z = e @ torch.randn(4, 8, generator=noise)  # the latents of their networks
ldm = hc.HyperLDM.make(4, 8, Standardizer(z))
last(hc.train_hyperldm(ldm, z, e, hc.TrainConfig(steps=100, lr=3e-3)))
found = ldm.generate(e, generator=noise, samples=2, check=False)
assert found.shape == (2, 60, 8) and found.isfinite().all()
assert torch.nn.functional.cosine_similarity(found.mean(0), z).mean() > 0.3  # they follow the questions
