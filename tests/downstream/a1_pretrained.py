# /// script
# dependencies = ["hyperclip_nb"]
# ///
"A question becomes a network with the weights that ship; the network goes to another process."

import subprocess
import sys

import torch

import hyperclip_nb as hc

ttw = hc.TextToWeights.from_pretrained("scenes")  # in the wheel; also a folder or hf-hub:USER/NAME
net = ttw("What size is the comet?", ["small", "medium", "large"], guidance=1.5, samples=10, seed=0)  # an nn.Module
x = torch.randn(5, ttw.feature_size)  # one's own CLIP features, of any length
assert net(x).shape == (5, 3) and net.predict(x)[0] in net.answers
assert torch.equal(net(x).argmax(-1), net(x / x.norm(dim=-1, keepdim=True)).argmax(-1))  # scaling is its own business
net.save_pretrained("comet")
torch.save((x, net(x)), "xy.pt")
code = (
    "import torch, hyperclip_nb as hc; x, y = torch.load('xy.pt'); "
    "assert torch.equal(hc.Adapter.from_pretrained('comet')(x), y)"
)
subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)  # in another process
