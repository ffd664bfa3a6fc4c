"""What the shipped weights answer about every held-out question, as the explorer shows it.

    python benchmarks/held_out.py        # writes hyperclip_nb/assets/explorer/held_out.json; a minute of one core

To be run again when hyperclip_nb/assets/scenes changes: the file names the weights that it is about; a test compares.
"""

import msgspec
from tqdm import tqdm

from hyperclip_nb.core.files import sha256_of, write_atomic
from hyperclip_nb.evaluation.pretrained import SHIPPED
from hyperclip_nb.evaluation.shipped import Shipped
from hyperclip_nb.explorer.explore import Explorer
from hyperclip_nb.explorer.page import HELD_OUT, record_data
from hyperclip_nb.explorer.play import measure_held_out
from hyperclip_nb.explorer.scores import HeldOut, family_gains, opening

explorer = Explorer(Shipped())
count = sum(len(explorer.experiment.sets[split].tasks) for split in ("val", "test"))
held = [*tqdm(measure_held_out(explorer), total=count)]
found = HeldOut(sha256_of(SHIPPED["scenes"] / "model.safetensors"), held)
HELD_OUT.parent.mkdir(exist_ok=True)
write_atomic(HELD_OUT, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
print(
    {name: value if isinstance(value, int) else value and round(value, 2) for name, value in record_data(found).items()}
)
print({family: round(gain, 1) for family, gain in family_gains(found.of("val")).items()})
print({kind: one.question for kind, one in opening(found).items()})
