"""Text towers of the teachers' own libraries, and zero-shot figures equal to open_clip's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from understudy.errors import ModelError
from understudy.evaluate.encoded_set import EncodedSet
from understudy.evaluate.protocols.zeroshot import Zeroshot
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.teacher import build_teacher
from understudy.models.text import embed_texts
from understudy.settings import resolve
from understudy.sources.source import open_source

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a photo of the digit {}.", "{}, written by hand.")
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.mark.slow
def test_zero_shot_of_a_trained_clip_is_open_clips_own(tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    name = f"local-dir:{tmp_path}"
    model, tokenizer = open_clip.create_model(name), open_clip.get_tokenizer(name)
    source = open_source("digits:train", limit=400)
    labels = torch.from_numpy(source.labels)
    pixels = torch.stack([torch.from_numpy(np.array(source.read(i))).permute(2, 0, 1) / 255.0 for i in range(400)])
    pixels = (pixels - torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)) / torch.tensor(
        open_clip.OPENAI_DATASET_STD
    ).view(3, 1, 1)
    texts = tokenizer([TEMPLATES[0].format(word) for word in WORDS])
    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=1e-3), torch.Generator().manual_seed(0)
    for _ in range(140):
        batch = torch.randint(0, 400, (64,), generator=draw)
        images, words = F.normalize(model.encode_image(pixels[batch])), F.normalize(model.encode_text(texts))
        optimizer.zero_grad()
        F.cross_entropy(20 * images @ words.T, labels[batch]).backward()
        optimizer.step()
    model.eval()
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")

    teacher = build_teacher(f"open_clip:{tmp_path}")
    test = open_source("digits:test")
    prepared = torch.stack([teacher.contract.preprocess(test.read(i)) for i in range(len(test))])
    with torch.inference_mode():
        rows = model.encode_image(prepared)
        classifier = open_clip.build_zero_shot_classifier(
            model, tokenizer, WORDS, [lambda word, one=one: one.format(word) for one in TEMPLATES]
        )
        scores = F.normalize(rows) @ classifier
        wanted = 100 * (scores.argmax(1).numpy() == test.labels).mean()
        five = 100 * np.mean(
            [label in top for label, top in zip(test.labels, scores.topk(5).indices.tolist(), strict=True)]
        )
        ours = teacher.features(prepared).numpy()
    encoded = EncodedSet("teacher", ours, test_labels=test.labels, class_names=WORDS, encoder=teacher)
    settings = resolve(EvaluationSettings, {"protocols": "zeroshot", "zeroshot": {"templates": list(TEMPLATES)}})
    figures = Zeroshot.evaluate(encoded, settings)
    assert figures["top1"] == pytest.approx(wanted)
    assert figures["top5"] == pytest.approx(five)
    assert 20 < wanted < 100  # it has learned, and not all


def test_texts_of_transformers_are_its_own(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "a", "photo", "of", *WORDS, "<end>", "<start>"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"eos_token_id": vocabulary["<end>"], "bos_token_id": vocabulary["<start>"], "pad_token_id": 0}
    text = {**tower, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 8}
    config = CLIPConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=12)
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = [f"a photo of {word} <end>" for word in WORDS]
    with torch.no_grad():
        output = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt"))
    wanted = F.normalize(output if isinstance(output, torch.Tensor) else output.pooler_output)
    assert np.abs(embed_texts(f"hf:{tmp_path}", texts) - wanted.numpy()).max() < 1e-5


def test_a_model_without_texts_is_a_sentence(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(**tiny, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no text tower: it is a ViTModel"):
        embed_texts(f"hf:{tmp_path}", ["a"])
