"The shipped CLIP is what its record says, and its tokenizer never drops a word silently."

import itertools
import json
import resource
import shutil
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from hyperclip_nb.core.files import FileError
from hyperclip_nb.core.training import TrainConfig
from hyperclip_nb.dataset import small_clip_training, sources
from hyperclip_nb.dataset.encoders import load_encoder, nearest_questions
from hyperclip_nb.dataset.questions import draw_images, find_question, questions, reserved_cells, scenes_tasks
from hyperclip_nb.dataset.scenes import CATEGORY
from hyperclip_nb.dataset.small_clip import (
    ASSETS,
    PADDING,
    UNKNOWN,
    WEIGHTS,
    SmallTokenizer,
    load_small_clip,
    small_clip_record,
    small_tokenizer,
    zero_shot_accuracy,
)
from hyperclip_nb.dataset.small_clip_training import (
    RECIPE,
    Pairs,
    generalise,
    pairs_hash,
    retrieval_accuracy,
    save_small_clip,
    train_small_clip,
)
from hyperclip_nb.dataset.sources import scenes_bank


@pytest.fixture(scope="module")
def encoder():
    return load_small_clip()


@pytest.fixture(scope="module")
def splits():
    return scenes_tasks(0)


def quietly(tokenizer, texts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenizer(texts)


# Words


def test_tokens_are_clips_own_renumbered_in_ascending_order(encoder):
    tokenizer, base = encoder.tokenizer, SimpleTokenizer()
    texts = [q.text for q in questions()] + [q.prompt(a) for q in questions() for a in q.answers]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every text of the data set is known
        rows = tokenizer(texts)
    back = {i: piece for piece, i in tokenizer.number.items()}
    for row, text in zip(rows[::50], texts[::50]):
        ids = [i for i in row.tolist() if i != PADDING]
        assert ids[0] == tokenizer.start and ids[-1] == tokenizer.end == row.max() == tokenizer.vocab_size - 1
        assert [back[i] for i in ids[1:-1]] == base.encode(text)
    assert [tokenizer.number[p] for p in sorted(tokenizer.number)] == list(range(2, tokenizer.start))


TINY = SmallTokenizer([320, 525, 518])  # "a", "of", "the"


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.text(max_size=12) | st.sampled_from(["the", "moon", "<end_of_text>", "zeppelin", "Ünïcode", "{}"]),
        max_size=8,
    )
)
def test_any_text_keeps_every_word(words):
    tokenizer = TINY
    text = " ".join(words)
    cut = tokenizer.words(text)
    try:
        row = quietly(tokenizer, [text])[0]
    except ValueError as error:
        assert "at most 22 tokens" in str(error) and len(cut) > 22
        return
    assert (
        (row == tokenizer.end).sum() == (row == tokenizer.start).sum() == 1
    )  # not even "<end_of_text>" makes a second one
    assert int(row.argmax()) == len(cut) + 1  # here, each known word is one piece: a token for every word


@settings(deadline=None, max_examples=300)
@given(
    st.text("abcdefghijklmnorstuvwy -'?!.,<>&_0123", max_size=30)
    | st.lists(st.sampled_from(["comet", "comets", "tri", "angles", "snowcat", "pencil", "'s"]), max_size=6).map(
        "".join
    )
    | st.text(max_size=20)
)
def test_words_are_cut_as_clips_own_tokenizer_cuts_them(text):
    quick = small_tokenizer()
    slow = SmallTokenizer(quick.pieces)  # without merges, open_clip's tokenizer is asked
    assert quick.words(text) == slow.words(text)
    assert [quick.tokens(word) for word in quick.words(text)] == [slow.tokens(word) for word in slow.words(text)]


def test_the_small_towers_compute_what_open_clip_computes(encoder, splits):
    theirs = load_encoder(f"local-dir:{ASSETS}", tokenizer=encoder.tokenizer, name="small_clip")
    assert encoder.fingerprint == theirs.fingerprint and encoder.embed_dim == theirs.embed_dim
    texts = [text for task in splits["test"][::20] for text in (task.question, *task.prompts)]
    for pooling in "clip", "tokens":
        assert torch.equal(encoder.encode_texts(texts, pooling), theirs.encode_texts(texts, pooling))
    pictures = draw_images([image for task in splits["test"][::20] for image, _ in task.query[:4]])
    assert torch.equal(encoder.encode_images(pictures), theirs.encode_images(pictures))


def test_loading_leaves_the_global_random_numbers_alone():
    before = torch.random.get_rng_state()
    load_small_clip()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_unknown_words_are_named(encoder):
    with pytest.warns(UserWarning, match="zeppelin, borogove$"):
        known, unknown = encoder.encode_texts(["What color is the zeppelin?", "what size is the borogove?"])
    assert known.isfinite().all() and not torch.allclose(known, unknown)


@pytest.mark.parametrize("text, words", [("what " * 500, "at most 22 tokens, got 500"), ("", "empty"), ("  ", "empty")])
def test_texts_that_cannot_be_encoded(encoder, text, words):
    with pytest.raises(ValueError, match=words):
        encoder.encode_texts(["what color is the moon?", text])


# Training


def test_generalised_questions_are_questions_about_the_category():
    for question in questions():
        general = generalise(question.text)
        category = CATEGORY.get(question.subject, question.subject)
        told = {
            f"{category}/{family}" for family in ((question.family, "place") if question.side else (question.family,))
        }
        if question.subject in CATEGORY and not told & reserved_cells():
            assert (
                question.subject not in general and category.split()[-1] in general
            )  # sky objects: the plural ends otherwise
            found = find_question(general)
            assert found is None or (found.subject, found.family, found.side) == (
                category,
                question.family,
                question.side,
            )
        else:
            assert general == question.text


def test_pairs_depend_on_seed_and_step_only():
    tokenizer = load_small_clip().tokenizer
    a, b, other = (Pairs(tokenizer, 9, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(a[5][0], b[5][0]) and torch.equal(a[5][1], b[5][1])
    assert not torch.equal(a[5][0], other[5][0]) and not torch.equal(a[5][0], a[6][0])
    hidden = Pairs(tokenizer, 9, 64, 0, hide=1.0)[0][1]
    words = (hidden != PADDING) & (hidden < tokenizer.start)
    assert (hidden[words] == UNKNOWN).all() and (hidden == tokenizer.end).sum() == 64
    with pytest.raises(IndexError):
        a[9]


def test_the_recipe_begins_as_recorded(encoder, monkeypatch):
    "The first steps of the training give the recorded losses: pictures and captions are those of the shipped weights."
    record = small_clip_record()
    assert record["pairs"] == pairs_hash(encoder.tokenizer)
    own = {name: value for name, value in RECIPE.__dict__.items() if value is not None}
    assert record["recipe"] == own and len(record["loss"]) == RECIPE.steps
    monkeypatch.setattr(small_clip_training, "progress", lambda updates: itertools.islice(updates, 3))
    _, updates = train_small_clip(encoder.tokenizer, RECIPE, workers=0)
    assert [u.loss for u in updates] == pytest.approx(record["loss"][:3], abs=0.05)


# What ships


def test_size():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 8e6


def test_recorded_accuracy(encoder, splits):
    "On a tenth of the held-out questions: 650 pictures, of which another processor's rounding may turn a few."
    scores = zero_shot_accuracy(encoder, splits["test"][::10])
    figures = small_clip_record()["figures"]
    assert sum(scores.values()) / len(scores) == pytest.approx(figures["zero-shot, every tenth task"], abs=0.01)
    assert (
        figures["chance"] + 0.15 < figures["zero-shot"] < 0.55
    )  # it sees something, and leaves something to be learnt
    assert retrieval_accuracy(encoder, batches=5) == pytest.approx(figures["retrieval among 128"], abs=0.05)


def test_questions_keep_what_is_asked(encoder, splits):
    for pooling, share in ("clip", 0.9), ("tokens", 0.75):
        test, train = (encoder.encode_texts([t.question for t in splits[part]], pooling) for part in ("test", "train"))
        nearest = nearest_questions(test, train)[:, 0].tolist()
        assert sum(a.family == splits["train"][i].family for a, i in zip(splits["test"], nearest)) >= share * len(
            nearest
        )


@pytest.mark.parametrize("name", [WEIGHTS, "small_clip.json"])
def test_damaged_weights_are_refused(tmp_path, name):
    shutil.copytree(ASSETS, tmp_path / "assets")
    data = bytearray((tmp_path / "assets" / name).read_bytes())
    data[len(data) // 2 if name == WEIGHTS else data.index(b'"sha256": "') + 12] ^= 1
    (tmp_path / "assets" / name).write_bytes(data)
    with pytest.raises(FileError, match="not the file"):
        load_small_clip(folder=tmp_path / "assets")


@pytest.mark.parametrize(
    "tower, field",
    [("text_cfg", name) for name in ("width", "layers", "vocab_size", "context_length")] + [("vision_cfg", "width")],
)
def test_a_small_configuration_can_not_ask_for_much_memory(tmp_path, tower, field):
    shutil.copytree(ASSETS, tmp_path / "assets")
    path = tmp_path / "assets" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"][tower][field] = 3 * 10**12
    path.write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileError, match=f"{tower}.{field}: expected .*000000000"):
        load_small_clip(folder=tmp_path / "assets")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_scenes_bank_is_made_once(tmp_path, monkeypatch, splits, encoder):
    few = {part: tasks[:2] for part, tasks in splits.items()}
    monkeypatch.setattr(sources, "scenes_tasks", lambda world_seed, labels: few)
    monkeypatch.setattr(sources, "kept_labels", lambda path, world_seed: [])
    again, bank = scenes_bank(tmp_path)
    assert again is few and bank.folder.parent == tmp_path / "features" and bank.images.shape == (6 * 75, 128)
    monkeypatch.setattr(sources, "draw_images", lambda ids: pytest.fail("drawn twice"))
    monkeypatch.setattr(type(encoder), "encode_images", lambda *args: pytest.fail("encoded twice"))
    _, second = scenes_bank(tmp_path)
    assert torch.equal(bank.images, second.images)
    ids = few["val"][1].images
    assert torch.equal(second.images[second.image_rows(ids)].norm(dim=-1) > 0, torch.ones(75, dtype=torch.bool))


def test_scenes_bank_takes_another_small_clip(tmp_path, monkeypatch, splits, encoder):
    monkeypatch.setattr(sources, "scenes_tasks", lambda world_seed, labels: {"train": splits["train"][:1]})
    monkeypatch.setattr(sources, "kept_labels", lambda path, world_seed: [])
    model, _ = train_small_clip(encoder.tokenizer, TrainConfig(steps=1, lr=1e-3), batch=4, workers=0)
    save_small_clip(tmp_path / "clip", model, encoder.tokenizer, {"steps": 1})
    _, shipped = scenes_bank(tmp_path)
    _, other = scenes_bank(tmp_path, clip=tmp_path / "clip")
    assert small_clip_record(tmp_path / "clip")["steps"] == 1
    assert other.folder != shipped.folder and not torch.allclose(other.images, shipped.images, atol=0.1)
