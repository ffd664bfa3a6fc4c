# /// script
# dependencies = ["hyperclip_nb", "scikit-learn"]
# ///
"One's own tensors, text encoder and network: words make networks for questions about digits."

import zlib
from itertools import combinations

import torch
from sklearn.datasets import load_digits
from torch import nn

import hyperclip_nb as hc

digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
word = lambda w: torch.randn(32, generator=torch.Generator().manual_seed(zlib.crc32(w.encode())))
embed = lambda text: torch.stack([word(w) for w in text.strip("?").replace(",", "").split()]).sum(0) / 2
yes = {f"Is it greater than {t}?": [k > t for k in range(10)] for t in range(9)}
yes |= {f"Is it {a} or {b}?": [k in (a, b) for k in range(10)] for a, b in combinations(range(10), 2)}
rules = {question: (["no", "yes"], labels) for question, labels in yes.items()}
for three in combinations(range(10), 3):
    labels = [three.index(k) if k in three else -1 for k in range(10)]
    rules["Which of {}, {}, {} is it?".format(*three)] = [str(k) for k in three], labels
noise, tasks = torch.Generator().manual_seed(0), []
for question, (answers, labels) in rules.items():
    label, rows = torch.tensor(labels).long()[y], torch.randperm(len(y), generator=noise)
    rows = rows[label[rows] >= 0][:80]
    tasks.append(hc.TensorTask(question, answers, rows, label[rows]))
tasks = [tasks[i] for i in torch.randperm(len(tasks), generator=noise)]
train, test = (hc.TaskSet.from_tensors(x, part, embed_question=embed) for part in (tasks[:-30], tasks[-30:]))
torch.manual_seed(0)
net, e = hc.ModuleNet(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))), test.embeddings("text")
start = hc.fit_multitask(net, train, steps=150)
conditional = hc.fit_conditional(net, train, start, steps=300)
ldm = hc.fit_hyperldm(hc.fit_hvae(net, train, start, views=2, steps=250), train, steps=300)
found = [start.z0[None], conditional(e), ldm.sample(e, guidance=1.5, samples=10)]
scores = [hc.accuracy(net, w, test) for w in found]
print([round(score, 3) for score in scores])
assert min(scores[1:]) > scores[0] + 0.2
