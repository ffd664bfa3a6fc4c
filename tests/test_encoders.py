"Encoders with weights saved here: half precision, SigLIP's kind with a tokenizer of Hugging Face, poolings."

import json
import sys

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from toy_bank import task

from hyperclip_nb.core.files import FileError
from hyperclip_nb.dataset.encoders import ClipEncoder, load_encoder, tokenizer_name
from hyperclip_nb.dataset.features import build_bank

TEXTS = ["what color is the bowl?", "red bowl"]
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
HALVES = "float16", "bfloat16"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A CLIP of the usual kind, two layers deep, as a folder that open_clip reads."
    folder = tmp_path_factory.mktemp("small")
    vision = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    config = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    pictures = {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": pictures}))
    return folder


def siglip(folder, words):
    "A model of SigLIP's kind (timm's tower, a text tower that ends at its last token), with a tokenizer of its own."
    tokenizers = pytest.importorskip("tokenizers", reason="pip install transformers")
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["<pad>", "<eos>", "<unk>"]
    made.train_from_iterator([words], tokenizers.trainers.WordLevelTrainer(special_tokens=special))
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=16, **names).save_pretrained(folder)
    config = open_clip.get_model_config("ViT-B-16-SigLIP")
    config["embed_dim"] = 192
    config["vision_cfg"] |= {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_pool": "avg"}
    config["text_cfg"] |= {"layers": 2, "width": 192, "heads": 3, "context_length": 16, "vocab_size": 32}
    config["text_cfg"]["hf_tokenizer_name"] = str(folder)
    torch.manual_seed(0)
    plain = {name: value for name, value in config.items() if name != "custom_text"}
    model = open_clip.CustomTextCLIP(**plain)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    pictures = {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": pictures}))
    return f"local-dir:{folder}"


def vectors(encoder):
    pixels = PIXELS if encoder.preprocessing.size == 64 else PIXELS.repeat(4, 1).repeat(4, 2)[:, :224, :224]
    return [encoder.encode_images(pixels), *(encoder.encode_texts(TEXTS, pooling) for pooling in encoder.poolings)]


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_gives_the_same_vectors_but_for_its_rounding(small, dtype):
    whole, half = load_encoder(f"local-dir:{small}"), load_encoder(f"local-dir:{small}", dtype=dtype)
    assert half.fingerprint["computed in"] == dtype and half.fingerprint["activation"] == "quick_gelu"
    for full, rounded in zip(vectors(whole), vectors(half)):
        assert rounded.dtype == torch.float32
        assert torch.cosine_similarity(full, rounded).min() > 0.999
    converted = ClipEncoder(whole.model.to(getattr(torch, dtype)), whole.tokenizer, whole.preprocessing, "converted")
    assert converted.dtype == getattr(torch, dtype)  # all of it, layer norms too
    for full, rounded in zip(vectors(half), vectors(converted)):
        assert torch.cosine_similarity(full, rounded).min() > 0.999


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_siglip_with_a_tokenizer_of_hugging_face(tmp_path, dtype):
    encoder = load_encoder(siglip(tmp_path, "what color is the bowl ? red"), dtype=dtype)
    assert encoder.poolings == ("clip",) and encoder.fingerprint["activation"] == "gelu"
    for x in vectors(encoder):
        assert x.shape == (2, 192) and x.dtype == torch.float32 and x.isfinite().all()
    with pytest.raises(ValueError, match="at most 16 tokens, got more in the text 'red red"):
        encoder.encode_texts(["red " * 40])
    with pytest.raises(ValueError, match="poolings: expected some of clip for"):
        load_encoder(f"local-dir:{tmp_path}", poolings=["tokens"])


def test_a_tokenizer_is_known_by_its_vocabulary(tmp_path):
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for folder in one, same, other:
        folder.mkdir()
    names = [
        load_encoder(siglip(folder, words)).fingerprint["tokenizer"]
        for folder, words in ((one, "red bowl"), (same, "red bowl"), (other, "blue bowl"))
    ]
    assert names[0] == names[1] != names[2] and names[0].startswith("HFTokenizer, 5 tokens, ")


def test_a_tokenizer_with_nothing_inside_is_known_by_its_class():
    assert tokenizer_name(open_clip.SimpleTokenizer()) == "SimpleTokenizer"


def test_a_missing_transformers_is_named_with_the_line_that_installs_it(small, tmp_path, monkeypatch):
    config = json.loads((small / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = str(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_model.safetensors").write_bytes((small / "open_clip_model.safetensors").read_bytes())
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it weren't installed
    with pytest.raises(ValueError, match="needs the package 'transformers', .* pip install transformers"):
        load_encoder(f"local-dir:{tmp_path}")


def test_only_the_poolings_that_were_asked_for_are_made(small, tmp_path):
    tasks = [task(i, 2) for i in range(2)]
    load = lambda ids: np.stack([PIXELS[int(i[-1]) % 2] for i in ids])
    narrow, full = load_encoder(f"local-dir:{small}", poolings=["clip"]), load_encoder(f"local-dir:{small}")
    asked = []
    plain = narrow._token_mean
    narrow._token_mean = lambda tokens: asked.append(tokens) or plain(tokens)
    bank = build_bank(tmp_path / "bank", narrow, tasks, load, workers=0)
    assert [*bank.questions] == ["clip"] and not asked
    with pytest.raises(FileError, match="embedded by clip, not by tokens; ask for those alone"):
        build_bank(tmp_path / "bank", full, tasks, load, workers=0)
    both = build_bank(tmp_path / "both", full, tasks, load, workers=0)
    assert {*both.questions} == {"clip", "tokens"} and torch.equal(both.questions["clip"], bank.questions["clip"])
    assert {*build_bank(tmp_path / "both", narrow, tasks, load, workers=0).questions} == {"clip", "tokens"}  # enough
    for wrong in ["mean"], []:
        with pytest.raises(ValueError, match="poolings: expected some of clip, tokens for"):
            load_encoder(f"local-dir:{small}", poolings=wrong)


def test_the_activation_of_openais_files_is_asked_for_or_follows_from_the_name(small, tmp_path):
    "Weights of OpenAI in a file: the name with -quickgelu settles it, the plain name doesn't."
    config = json.loads((small / "open_clip_config.json").read_text())["model_cfg"]
    named = {"tiny-openai": {**config, "quick_gelu": None}, "tiny-openai-quickgelu": config}
    for name, settings in named.items():
        plain = {key: value for key, value in settings.items() if value is not None}
        (tmp_path / f"{name}.json").write_text(json.dumps(plain))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    file = str(small / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="--activation quick_gelu .OpenAI's own weights. or gelu"):
        load_encoder("tiny-openai", file)
    right = load_encoder("tiny-openai-quickgelu", file)
    assert right.fingerprint["activation"] == "quick_gelu"
    asked = load_encoder("tiny-openai", file, quick_gelu=True)
    assert torch.equal(asked.encode_texts(TEXTS), right.encode_texts(TEXTS))
    assert not torch.equal(
        load_encoder("tiny-openai", file, quick_gelu=False).encode_texts(TEXTS), right.encode_texts(TEXTS)
    )


def letters(texts):
    "Stands for a sentence encoder."
    return np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], dtype=np.float32)


def test_questions_are_read_by_a_function_of_ones_own(small, tmp_path):
    encoder = load_encoder(f"local-dir:{small}")
    both = encoder.reading_by(letters=letters)
    bank = build_bank(tmp_path, both, [task(0)], lambda ids: np.repeat(PIXELS[:1], len(ids), 0))
    assert set(bank.questions) == {"clip", "tokens", "letters"}
    questions = sorted(bank.index.questions)
    assert torch.equal(bank.questions["letters"][bank.question_rows(questions)], torch.tensor(letters(questions)))
    assert torch.equal(both.encode_texts(TEXTS), encoder.encode_texts(TEXTS)) and encoder.poolings == ("clip", "tokens")
    assert both.source == {} and both.fingerprint == encoder.reading_by(letters=letters).fingerprint
    assert both.fingerprint != encoder.reading_by(letters=lambda texts: 2 * letters(texts)).fingerprint
    wrong = {
        "one vector": lambda texts: letters(texts)[0],
        "too few": lambda texts: letters(texts)[:1],
        "whole numbers": lambda texts: letters(texts).astype(int),
        "not a number": lambda texts: letters(texts) * np.nan,
    }
    for name, function in wrong.items():
        with pytest.raises(ValueError, match="mine"):
            encoder.reading_by(mine=function)
    for name in ("tokens", "pictures", "hvae", "Big"):
        with pytest.raises(ValueError, match="other than clip"):
            encoder.reading_by(**{name: letters})
    with pytest.raises(ValueError, match="expected pooling clip, tokens, letters, got 'other'"):
        both.encode_texts(TEXTS, "other")
