# /// script
# dependencies = ["hyperclip_nb[clip,plots]"]
# ///
"Words make a low-rank change of an image tower, on raw pixels."

import torch

import hyperclip_nb as hc
from hyperclip_nb.dataset.questions import draw_images, make_task, questions

clip = hc.load_small_clip()
made = [make_task(question, 0, 12, 8) for question in questions()[::300]]
ids = sorted({image for task in made for image in task.images})
pixels = clip.preprocessing.normalize(torch.as_tensor(draw_images(ids)))  # [I, 3, 64, 64]
tasks = []
for task in made:
    rows, labels = zip(*((ids.index(image), label) for image, label in task.support + task.query))
    tasks.append(hc.TensorTask(task.question, task.answers, rows, labels))
encode = lambda text: clip.encode_texts([text])[0]
ts = hc.TaskSet.from_tensors(pixels, tasks, embed_question=encode, embed_answer=lambda a: encode(f"a picture of {a}"))
net = hc.LoRANet(clip.model.visual, rank=2, match=("q_proj.weight", "v_proj.weight", "c_proj.weight"))
zero_shot = hc.accuracy(net, net.initial(torch.Generator().manual_seed(0))[None], ts)  # B = 0: the tower as it was
start = hc.fit_multitask(net, ts, steps=8, lr=3e-3)
generator = hc.fit_hvae(net, ts, start, views=2, steps=8)
w = hc.fit_hyperldm(generator, ts, steps=50).sample(ts.embeddings("text"), samples=2, check=False)
print(net.size, len(ts), zero_shot, hc.accuracy(net, start.z0[None], ts), w.shape)
assert w.shape == (2, len(ts), net.size) and w.isfinite().all()
