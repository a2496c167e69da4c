"""Pre-trains the demo's tiny CLIP on drawings, without the demo's renditions and four nouns.

    OMP_NUM_THREADS=1 python -m tests.demo_clip.pretrain --out pipeline/demo/clip

Image and text tower are open_clip's, trained from scratch. The loss compares every image of a batch
with one caption of every noun that has images, in both directions, and with one caption of every
group of nouns ("an animal"). A term on text alone pulls the captions of all nouns, with and without
images, to the caption of their group.

Takes 12 minutes and about 1 GB on one core, drawing included. The same seed gives the same weights
on one machine; another machine or version of torch rounds differently.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from pipeline.cli import build_parser
from pipeline.demo.drawing import (
    IMAGE_SIZE,
    PRETRAINING_NOUNS,
    PRETRAINING_RENDITIONS,
    UNSEEN_NOUNS,
    draw_image,
)
from pipeline.demo.nouns import NOUNS
from pipeline.rng import numpy_stream, seed_torch, torch_stream

# B images · C nouns · G groups · N text tokens · E joint width

log = logging.getLogger(__name__)

TEMPLATES = (
    "a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "an image of a {}.",
    "a photo of the {}.", "a drawing of the {}.", "a small {}.", "this is a {}.", "a {}.", "{}",
)  # fmt: skip
ALL_NOUNS = (*PRETRAINING_NOUNS, *UNSEEN_NOUNS)
GROUPS = tuple(sorted({noun.group for noun in NOUNS.values()}))

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": IMAGE_SIZE, "patch_size": 8, "width": 96, "layers": 4, "head_width": 32,
    },
    # The token table holds most of the bytes: 49,408 tokens x 32.
    "text_cfg": {
        "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
    },
}  # fmt: skip
PREPROCESSING = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """Everything that determines the weights."""

    seed: int = 0
    images: int = 60  # per noun and rendition
    steps: int = 3000  # optimizer steps
    batch: int = 128  # images per step
    learning_rate: float = 4e-3  # peak; after a warm-up it decays to zero by a cosine
    matrix_learning_rate: float = 2e-2  # the same, for the matrices inside the blocks
    weight_decay: float = 0.05
    warmup_steps: int = 100
    group_weight: float = 0.3  # of the two group terms, relative to the noun terms


def draw_pool(config: PretrainingConfig) -> tuple[Tensor, Tensor]:
    """All training images, uint8 ``image_BCHW``, and the number of the noun of each."""
    images, labels = [], []
    for label, noun in enumerate(PRETRAINING_NOUNS):
        for rendition in PRETRAINING_RENDITIONS:
            for number in range(config.images):
                rng = numpy_stream("pre-training", config.seed, noun, rendition, number)
                images.append(np.asarray(draw_image(noun, rendition, rng)))
                labels.append(label)
        log.info("drew %s, %d/%d nouns", noun, label + 1, len(PRETRAINING_NOUNS))
    image_BHWC = torch.from_numpy(np.stack(images))
    return image_BHWC.permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def pretrain(config: PretrainingConfig, image_PCHW: Tensor, label_P: Tensor) -> open_clip.CLIP:
    """Train both towers on a pool of ``P`` images, in float32 and one process."""
    seed_torch("weights", config.seed)  # open_clip takes no generator
    model = open_clip.CLIP(**MODEL)
    generator = torch_stream("batches", config.seed)
    captions = CaptionTokens()
    optimizers = _build_optimizers(model, config)
    schedules = [LambdaLR(optimizer, partial(_rate, config)) for optimizer in optimizers]
    started, order_P = time.monotonic(), torch.empty(0, dtype=torch.long)
    for step in range(config.steps):
        if len(order_P) < config.batch:
            order_P = torch.randperm(len(label_P), generator=generator)
        chosen_B, order_P = order_P[: config.batch], order_P[config.batch :]
        image_BCHW = normalize(_shift(image_PCHW[chosen_B], generator))
        loss, hits = _loss(model, image_BCHW, label_P[chosen_B], captions.draw(generator), config)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for worker in (*optimizers, *schedules):
            worker.step()
        model.logit_scale.data.clamp_(max=np.log(100))
        if step % 50 == 0 or step == config.steps - 1:
            rate = (step + 1) * config.batch / (time.monotonic() - started)
            log.info(
                "step %d/%d loss %.3f accuracy %.3f scale %.1f %.0f images/s", step + 1,
                config.steps, loss.item(), hits.item(), model.logit_scale.exp().item(), rate,
            )  # fmt: skip
    return model.eval()


def normalize(image_BCHW: Tensor) -> Tensor:
    """The input of the image tower from uint8 pixels."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (image_BCHW.float() / 255 - mean) / std


def save_clip(model: open_clip.CLIP, folder: str | Path) -> None:
    """Write a folder that open_clip loads as ``local-dir:<folder>``, with float16 weights."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, place / "open_clip_model.safetensors", metadata={"format": "pt"})
    settings = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESSING}
    (place / "open_clip_config.json").write_text(json.dumps(settings, indent=2) + "\n")


class CaptionTokens:
    """The tokens of every noun and group in every template."""

    def __init__(self) -> None:
        tokenizer = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
        names = (*ALL_NOUNS, *GROUPS)
        texts = [template.format(name) for template in TEMPLATES for name in names]
        self._token_TCN = tokenizer(texts).reshape(len(TEMPLATES), len(names), -1)

    def draw(self, generator: torch.Generator) -> Tensor:
        """``token_CN``: a caption of each noun (those with images first), then of each group."""
        _, count, _ = self._token_TCN.shape
        template_C = torch.randint(len(TEMPLATES), (count,), generator=generator)
        return self._token_TCN[template_C, torch.arange(count)]


def _loss(
    model: open_clip.CLIP, image_BCHW: Tensor, label_B: Tensor, token_CN: Tensor,
    config: PretrainingConfig,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loss of a batch, and the fraction of images nearest to their own noun."""
    scale = model.logit_scale.exp()
    group_C = torch.tensor([GROUPS.index(NOUNS[noun].group) for noun in ALL_NOUNS])
    z_BE = model.encode_image(image_BCHW, normalize=True)
    w_CE, w_GE = model.encode_text(token_CN, normalize=True).split([len(ALL_NOUNS), len(GROUPS)])
    logit_BC = scale * z_BE @ w_CE[: len(PRETRAINING_NOUNS)].T
    positive_BC = F.one_hot(label_B, len(PRETRAINING_NOUNS)).float()
    positive_BC = positive_BC / positive_BC.sum(0).clamp(min=1)
    # For a caption, every image of its noun in the batch is right.
    text_to_image = -(positive_BC * logit_BC.log_softmax(0)).sum() / (positive_BC.sum(0) > 0).sum()
    nouns = (F.cross_entropy(logit_BC, label_B) + text_to_image) / 2
    groups = F.cross_entropy(scale * z_BE @ w_GE.T, group_C[label_B])
    words = F.cross_entropy(scale * w_CE @ w_GE.T, group_C)
    hits = (logit_BC.argmax(1) == label_B).float().mean()
    return nouns + config.group_weight * (groups + words), hits


def _shift(image_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Move all images of a batch by the same shift of up to three pixels; the border repeats."""
    padded = F.pad(image_BCHW.float(), (3, 3, 3, 3), mode="replicate")
    top, left = torch.randint(7, (2,), generator=generator).tolist()
    return padded[..., top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]


def _build_optimizers(
    model: open_clip.CLIP, config: PretrainingConfig
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest.

    AdamW alone needs twice as many images for the same accuracy here.
    """
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        is_matrix = "resblocks" in name and parameter.ndim == 2
        (matrices if is_matrix else rest).append(parameter)
    decay = config.weight_decay
    return (
        torch.optim.Muon(matrices, lr=config.matrix_learning_rate, weight_decay=decay),
        torch.optim.AdamW(rest, lr=config.learning_rate, weight_decay=decay, betas=(0.9, 0.98)),
    )


def _rate(config: PretrainingConfig, step: int) -> float:
    warm = min(1.0, (step + 1) / config.warmup_steps)
    return warm * 0.5 * (1 + np.cos(np.pi * step / config.steps))


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, train and save."""
    summary, _, cost = (__doc__ or "").partition("\n")
    parser = build_parser("python -m tests.demo_clip.pretrain", summary, cost)
    parser.add_argument("--out", required=True, help="folder for the configuration and weights")
    for name in ("seed", "images", "steps", "batch"):
        default = getattr(PretrainingConfig, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    config = PretrainingConfig(
        seed=options.seed, images=options.images, steps=options.steps, batch=options.batch
    )
    model = pretrain(config, *draw_pool(config))
    save_clip(model, options.out)
    log.info("wrote %s", options.out)


if __name__ == "__main__":
    main()
