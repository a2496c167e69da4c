"""The frozen CLIP is open_clip's own, prompts enter where they should, and nothing in it learns."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.data.transforms import build_transform
from pipeline.errors import WeightsError
from pipeline.model.backbone import FrozenClip, PromptTokens
from pipeline.model.blocks import Prefix
from pipeline.model.weights import blank_clip, load_clip, weights_problem
from tests.naive_towers import prefixed_image, prompted_image, prompted_text
from tests.tiny import (
    CONTEXT_LENGTH,
    IMAGE_SIZE,
    JOINT_WIDTH,
    TEXT_LAYERS,
    TEXT_WIDTH,
    VISION_LAYERS,
    VISION_WIDTH,
    draw_images,
    model_config,
    write_clip,
)

CPU = torch.device("cpu")
TEXTS = ["a photo of a red fox.", "oak", "a photo of a very old sea urchin.", "x"]


@pytest.fixture(params=["plain", "custom text"])
def clip(request: pytest.FixtureRequest) -> FrozenClip:
    """Either of open_clip's two layouts."""
    name = "tiny_clip" if request.param == "plain" else "tiny_custom_clip"
    return request.getfixturevalue(name)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.5


def test_every_width_comes_from_the_model(clip):
    assert (clip.vision_width, clip._text.transformer.width) == (VISION_WIDTH, TEXT_WIDTH)
    assert (clip.joint_width, clip.image_size) == (JOINT_WIDTH, IMAGE_SIZE)
    assert (clip.vision_layers, clip.text_layers) == (VISION_LAYERS, TEXT_LAYERS)
    assert (clip.image_tokens, clip.context_length) == (10, CONTEXT_LENGTH)
    assert clip.logit_scale == pytest.approx(17.0)
    assert clip.n_parameters == sum(p.numel() for p in clip.clip.parameters())


def test_image_features_are_bit_equal_to_open_clip(clip):
    image_BCHW = draw_images(3)
    pooled_BV, joint_BE, _ = clip.encode_image(image_BCHW)
    assert torch.equal(joint_BE, clip.clip.encode_image(clip.normalise(image_BCHW)))
    assert torch.equal(pooled_BV @ clip.clip.visual.proj, joint_BE)


def test_penultimate_token_is_that_of_a_tower_without_its_last_block(clip):
    image_BCHW = draw_images(3)
    shorter = copy.deepcopy(clip.clip.visual)
    del shorter.transformer.resblocks[-1]
    shorter.proj = None
    expected_BV = shorter(clip.normalise(image_BCHW))
    torch.testing.assert_close(clip.encode_image(image_BCHW).penultimate_BV, expected_BV)
    prompt_DBLV = draw(VISION_LAYERS, 3, 2, VISION_WIDTH)[-1:]  # in the last block alone
    prompted = clip.encode_image(image_BCHW, prompt_DBLV, first_layer=VISION_LAYERS - 1)
    torch.testing.assert_close(prompted.penultimate_BV, expected_BV)


def test_image_is_normalised_as_open_clip_does(tiny_arch, tiny_clip):
    """must give the model what open_clip's own evaluation transform gives it, bit for bit"""
    _, _, preprocess = open_clip.create_model_and_transforms(tiny_arch)
    pixels = torch.randint(0, 256, (37, 50, 3), dtype=torch.uint8).numpy()
    image = Image.fromarray(pixels)
    ours_CHW = tiny_clip.normalise(build_transform("clip", IMAGE_SIZE)(image)[None])[0]
    torch.testing.assert_close(ours_CHW, preprocess(image), rtol=0, atol=3e-7)


def test_full_length_text_is_bit_equal_to_open_clip(clip, tiny_arch):
    token_CN = open_clip.get_tokenizer(tiny_arch)(TEXTS)
    assert token_CN.shape == (4, CONTEXT_LENGTH)
    full = PromptTokens(token_CN, token_CN.argmax(dim=1))
    assert torch.equal(clip.encode_text(full), clip.clip.encode_text(token_CN))


def test_text_cut_to_the_longest_prompt_gives_the_same_features(clip, tiny_arch):
    prompt = clip.tokenize(TEXTS)
    assert prompt.token_CN.shape[1] == int(prompt.end_C.max()) + 1 < CONTEXT_LENGTH
    expected_CE = clip.clip.encode_text(open_clip.get_tokenizer(tiny_arch)(TEXTS))
    torch.testing.assert_close(clip.encode_text(prompt), expected_CE, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("depth", range(1, VISION_LAYERS + 1))
def test_visual_prompts_equal_a_naive_loop(clip, depth):
    """must hold for prompts in the first block only, where they stay, up to all blocks"""
    image_BCHW, prompt_DBLV = draw_images(3), draw(depth, 3, 5, VISION_WIDTH)
    found = clip.encode_image(image_BCHW, prompt_DBLV).joint_BE
    expected = prompted_image(clip, image_BCHW, prompt_DBLV)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, clip.encode_image(image_BCHW).joint_BE, atol=1e-3)


@pytest.mark.parametrize(("first_layer", "depth"), [(0, 2), (1, 1), (1, 2), (2, 1)])
def test_prompts_from_a_later_block_on_equal_a_naive_loop(clip, first_layer, depth):
    """must hold with gradients, from pixels and, bit for bit, from the tokens in front of it"""
    image_BCHW = draw_images(3)
    prompt_DBLV = draw(depth, 3, 5, VISION_WIDTH).requires_grad_()
    token_BSV = clip.lower_blocks(image_BCHW, first_layer)
    assert token_BSV.shape == (3, clip.image_tokens, VISION_WIDTH) and not token_BSV.requires_grad
    expected_BE = prompted_image(clip, image_BCHW, prompt_DBLV, first_layer)
    direction_BE, slopes = draw(3, JOINT_WIDTH, seed=1), []
    for images in (image_BCHW, token_BSV):
        found_BE = clip.encode_image(images, prompt_DBLV, first_layer=first_layer).joint_BE
        torch.testing.assert_close(found_BE, expected_BE, rtol=1e-6, atol=1e-6)
        slopes += torch.autograd.grad((found_BE * direction_BE).sum(), prompt_DBLV)
    (wanted,) = torch.autograd.grad((expected_BE * direction_BE).sum(), prompt_DBLV)
    assert torch.equal(*slopes)
    torch.testing.assert_close(slopes[0], wanted, rtol=1e-5, atol=1e-5)
    plain, again = (clip.encode_image(images, first_layer=first_layer).joint_BE
                    for images in (image_BCHW, token_BSV))  # fmt: skip
    assert torch.equal(plain, again) and torch.equal(plain, clip.encode_image(image_BCHW).joint_BE)


def test_gradients_of_visual_prompts_equal_those_of_a_naive_loop(clip):
    image_BCHW = draw_images(3)
    prompt_DBLV = draw(VISION_LAYERS, 3, 5, VISION_WIDTH).requires_grad_()
    direction_BE = draw(3, JOINT_WIDTH, seed=1)
    found = (clip.encode_image(image_BCHW, prompt_DBLV).joint_BE * direction_BE).sum()
    expected = (prompted_image(clip, image_BCHW, prompt_DBLV) * direction_BE).sum()
    slopes = (torch.autograd.grad(value, prompt_DBLV)[0] for value in (found, expected))
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-5)


def test_each_image_has_its_own_prompts(clip):
    image_BCHW, prompt_DBLV = draw_images(3), draw(2, 3, 5, VISION_WIDTH)
    together = clip.encode_image(image_BCHW, prompt_DBLV).joint_BE
    for row in range(3):
        alone = clip.encode_image(image_BCHW[row : row + 1], prompt_DBLV[:, row : row + 1]).joint_BE
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)


def test_image_tower_pooling_all_tokens_leaves_the_prompts_out(tmp_path):
    """must pool over the image's own tokens where a model averages instead of reading CLS"""
    clip = load_clip(write_clip(tmp_path / "clip"), None, device=CPU)
    clip.clip.visual.pool_type, clip._pools_cls = "avg", False
    image_BCHW = draw_images(3)
    none = clip.encode_image(image_BCHW, torch.zeros(1, 3, 0, VISION_WIDTH)).joint_BE
    torch.testing.assert_close(none, clip.clip.encode_image(clip.normalise(image_BCHW)))
    visual, tokens = clip.clip.visual, []
    visual.ln_post.register_forward_hook(lambda module, given, out: tokens.append(out.shape[1]))
    clip.encode_image(image_BCHW, draw(2, 3, 5, VISION_WIDTH))
    assert set(tokens) == {10}


def draw_prefixes(*layers: int) -> dict[int, Prefix]:
    """Prefixes of another length in each of ``layers``."""
    return {
        layer: Prefix(
            draw(3, 2 + layer, VISION_WIDTH, seed=layer),
            draw(3, 2 + layer, VISION_WIDTH, seed=9 + layer),
        )
        for layer in layers
    }


@pytest.mark.parametrize("layers", [(0,), (1, VISION_LAYERS - 1), tuple(range(VISION_LAYERS))])
@pytest.mark.parametrize("depth", [0, 2])
def test_prefixes_equal_a_naive_loop_with_gradients(clip, layers, depth):
    """must hold in any blocks, also in the last one, where CLS alone is computed"""
    image_BCHW, prefixes = draw_images(3), draw_prefixes(*layers)
    prompt_DBLV = draw(depth, 3, 5, VISION_WIDTH) if depth else None
    leaves = [rows.requires_grad_() for prefix in prefixes.values() for rows in prefix]
    found_BE = clip.encode_image(image_BCHW, prompt_DBLV, prefixes).joint_BE
    naive = torch.empty(0, 3, 5, VISION_WIDTH) if prompt_DBLV is None else prompt_DBLV
    expected_BE = prefixed_image(clip, image_BCHW, prefixes, naive)
    torch.testing.assert_close(found_BE, expected_BE, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found_BE, clip.encode_image(image_BCHW, prompt_DBLV).joint_BE)
    direction_BE = draw(3, JOINT_WIDTH, seed=1)
    found, expected = (
        torch.autograd.grad((value_BE * direction_BE).sum(), leaves)
        for value_BE in (found_BE, expected_BE)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, TEXT_LAYERS])
def test_textual_prompts_equal_a_naive_loop_with_gradients(clip, tiny_arch, depth):
    context_DLW = draw(depth, 2, TEXT_WIDTH).requires_grad_()
    found_CE = clip.encode_text(clip.tokenize(TEXTS), context_DLW)
    expected_CE = prompted_text(clip, TEXTS, context_DLW, tiny_arch)
    torch.testing.assert_close(found_CE, expected_CE, rtol=1e-5, atol=1e-6)
    direction_CE = draw(4, JOINT_WIDTH, seed=1)
    slopes = (
        torch.autograd.grad((value * direction_CE).sum(), context_DLW)[0]
        for value in (found_CE, expected_CE)
    )
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-5)


def test_context_of_the_words_themselves_changes_nothing(clip):
    """must hold: a context that starts at "a photo of a" starts at the hand-written prompt"""
    words_LW = clip.embed_words("a photo of a")
    assert words_LW.shape == (4, TEXT_WIDTH)
    learned = clip.encode_text(clip.tokenize(["red fox.", "oak."]), words_LW[None])
    written = clip.encode_text(clip.tokenize(["a photo of a red fox.", "a photo of a oak."]))
    torch.testing.assert_close(learned, written, rtol=1e-5, atol=1e-6)


def test_too_long_a_prompt_is_refused_with_its_remedy(clip):
    with pytest.raises(
        WeightsError, match="27 tokens, 22 of them learned context.*takes 24; short"
    ):
        clip.encode_text(clip.tokenize(["red fox."]), draw(1, 22, TEXT_WIDTH))


def test_no_gradient_reaches_the_backbone(clip):
    prompt_DBLV = draw(2, 3, 5, VISION_WIDTH).requires_grad_()
    context_DLW = draw(1, 2, TEXT_WIDTH).requires_grad_()
    embedding_BE = clip.encode_image(draw_images(3), prompt_DBLV).joint_BE
    text_CE = clip.encode_text(clip.tokenize(TEXTS), context_DLW)
    (embedding_BE @ text_CE.T).sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in clip.clip.parameters())
    assert prompt_DBLV.grad.abs().sum() > 0 and context_DLW.grad.abs().sum() > 0


def test_no_graph_is_built_where_nothing_is_learned(clip):
    assert not clip.encode_image(draw_images(3)).joint_BE.requires_grad
    assert not clip.encode_text(clip.tokenize(TEXTS)).requires_grad
    assert not clip.embed_words("a photo").requires_grad


def test_hash_names_the_weights_and_not_the_file(tiny_arch, tiny_clip, tmp_path):
    again = load_clip(write_clip(tmp_path / "again"), None, device=CPU)
    assert again.sha256 == tiny_clip.sha256
    other = load_clip(write_clip(tmp_path / "other", seed=2), None, device=CPU)
    assert other.sha256 != tiny_clip.sha256


# Names that open_clip knows, with: V, W, E, image and text layers, image tokens, image size.
REAL = {
    "ViT-B-16": (768, 512, 512, 12, 12, 197, 224),
    "ViT-L-14-quickgelu": (1024, 768, 768, 24, 12, 257, 224),
    "ViT-L-14-336": (1024, 768, 768, 24, 12, 577, 336),
    "ViT-H-14": (1280, 1024, 1024, 32, 24, 257, 224),
}


def on_meta(name: str) -> FrozenClip:
    """A model of real size that has shapes and no memory."""
    meta = torch.device("meta")
    with meta:
        model = open_clip.create_model(name, load_weights=False, device="meta")
    model.logit_scale = nn.Parameter(torch.zeros(()))  # the one tensor that is read as a number
    return FrozenClip(model, None, name=name, device=meta)


@pytest.mark.parametrize("name", REAL)
def test_real_models_take_prompts_of_their_own_widths(name):
    clip = on_meta(name)
    widths = (clip.vision_width, clip._text.transformer.width, clip.joint_width)
    layers = (clip.vision_layers, clip.text_layers)
    assert (*widths, *layers, clip.image_tokens, clip.image_size) == REAL[name]
    shape = (2, 3, clip.image_size, clip.image_size)
    image_BCHW = torch.zeros(shape, dtype=torch.uint8, device="meta")
    prompt_DBLV = torch.zeros(clip.vision_layers, 2, 5, clip.vision_width, device="meta")
    pooled_BV, joint_BE, _ = clip.encode_image(image_BCHW, prompt_DBLV)
    assert pooled_BV.shape == (2, clip.vision_width) and joint_BE.shape == (2, clip.joint_width)
    token_CN = torch.zeros(3, 9, dtype=torch.long, device="meta")
    context_DLW = torch.zeros(2, 4, clip._text.transformer.width, device="meta")
    text_CE = clip.encode_text(PromptTokens(token_CN, token_CN[:, 0]), context_DLW)
    assert text_CE.shape == (3, clip.joint_width)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RN50", "RN50: the image tower is a ModifiedResNet; visual prompts need a plain vision"),
        ("coca_ViT-B-32", "coca_ViT-B-32: the image tower pools by attention; visual prompts need"),
    ],
)
def test_tower_that_cannot_be_prompted_is_refused(name, words):
    with pytest.raises(WeightsError, match=words):
        on_meta(name)


@pytest.mark.parametrize(
    ("arch", "weights", "words"),
    [
        ("ViT-L-14", "openai", "wrong activation for the weights 'openai'.*use ViT-L-14-quickgelu"),
        ("ViT-L14", "openai", "open_clip has no model 'ViT-L14'; did you mean 'ViT-L-14'"),
        (
            "ViT-L-14",
            "opnai",
            "'opnai' is neither a file nor a pretrained tag of ViT-L-14; its tags",
        ),
        ("ViT-L-14", "nowhere/w.safetensors", "is neither a file nor a pretrained tag"),
        (
            "ViT-L-14",
            None,
            "model.weights: missing for ViT-L-14; give a pretrained tag, a file, or",
        ),
        (
            "local-dir:/nowhere/clip",
            None,
            "there is no folder /nowhere/clip; give one in open_clip",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_before_loading(arch, weights, words):
    with pytest.raises(WeightsError, match=words):
        load_clip(arch, weights, device=CPU)


@pytest.mark.parametrize(
    ("arch", "weights"),
    [
        ("ViT-L-14-quickgelu", "openai"),
        ("ViT-L-14", "laion2b_s32b_b82k"),
        ("ViT-B-16", "random"),
        ("ViT-H-14", "laion2b_s32b_b79k"),
    ],
)
def test_weights_that_fit_are_let_through(arch, weights):
    assert weights_problem(arch, weights) is None


def test_folder_without_a_model_or_with_other_weights_is_refused(tmp_path, tiny_arch):
    assert "no open_clip_config.json" in weights_problem(f"local-dir:{tmp_path}", None)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_config()}))
    assert "no open_clip_model.safetensors" in weights_problem(f"local-dir:{tmp_path}", None)
    assert "brings its own weights; remove 'openai'" in weights_problem(tiny_arch, "openai")


@pytest.fixture
def named_arch(tmp_path: Path) -> str:
    """A tiny architecture that open_clip knows by name."""
    (tmp_path / "tiny-named.json").write_text(json.dumps(model_config()))
    open_clip.add_model_config(tmp_path)
    return "tiny-named"


def test_random_weights_are_always_the_same(named_arch):
    first, second = (load_clip(named_arch, "random", device=CPU).sha256 for _ in range(2))
    assert first == second


def test_blank_clip_has_the_shapes_and_the_limits_of_the_real_one(named_arch):
    """must refuse a prompt that is too long, as the run would"""
    context_DLW = torch.zeros(1, 4, TEXT_WIDTH)
    answers = []
    for clip in (blank_clip(named_arch), load_clip(named_arch, "random", device=CPU)):
        text_CE = clip.encode_text(clip.tokenize(["a bee", "an elk"]))
        too_long = clip.tokenize(["bee " * (clip.context_length - 5)])
        with pytest.raises(WeightsError, match="text tower takes") as refusal:
            clip.encode_text(too_long, context_DLW)
        said = str(refusal.value).partition(": ")[2]
        sizes = clip.n_parameters, clip.vision_width, clip.embed_words("a photo").shape
        answers.append((text_CE.shape, text_CE.dtype, *sizes, said))
    assert answers[0] == answers[1]


def test_weights_are_read_from_a_file(named_arch, tiny_clip, tmp_path):
    save_file(tiny_clip.clip.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_clip(named_arch, str(tmp_path / "weights.safetensors"), device=CPU)
    assert loaded.sha256 == tiny_clip.sha256
