"""Measures the tiny CLIP before the demo: the figures in ``pipeline/demo/clip/README.md``.

    python -m tests.demo_clip.measure --clip pipeline/demo/clip

Zero-shot accuracy with one template, and the accuracy of a nearest class mean and of a linear
probe, which use the labels of the demo's training images. Takes half a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.cli import build_parser
from pipeline.demo.drawing import (
    DEMO_NOUNS,
    DEMO_RENDITIONS,
    PRETRAINING_NOUNS,
    PRETRAINING_RENDITIONS,
    UNSEEN_NOUNS,
    draw_image,
)
from pipeline.rng import numpy_stream

# B images · C nouns · E joint width

TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Features:
    """Unit image features with the noun and the rendition of each image."""

    z_BE: Tensor
    label_B: Tensor
    rendition_B: Tensor


class TinyClip:
    """The frozen CLIP in a folder."""

    def __init__(self, folder: str) -> None:
        self.model, _, self._preprocess = open_clip.create_model_and_transforms(
            f"local-dir:{folder}"
        )
        self.model.eval()
        self._tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")

    @torch.no_grad()
    def encode_nouns(self, nouns: Sequence[str]) -> Tensor:
        """``w_CE``: the unit text embedding of each noun."""
        texts = [TEMPLATE.format(noun) for noun in nouns]
        return self.model.encode_text(self._tokenize(texts), normalize=True)

    @torch.no_grad()
    def encode_images(
        self, nouns: Sequence[str], renditions: Sequence[str], count: int, split: str
    ) -> Features:
        """Draw ``count`` new images of every noun in every rendition and encode them."""
        pixels, labels, styles = [], [], []
        for label, noun in enumerate(nouns):
            for style, rendition in enumerate(renditions):
                for number in range(count):
                    rng = numpy_stream("measure", split, noun, rendition, number)
                    pixels.append(self._preprocess(draw_image(noun, rendition, rng)))
                    labels.append(label)
                    styles.append(style)
        batches = torch.stack(pixels).split(256)
        z_BE = torch.cat([self.model.encode_image(batch, normalize=True) for batch in batches])
        return Features(z_BE, torch.tensor(labels), torch.tensor(styles))


def score_zero_shot(features: Features, w_CE: Tensor) -> Tensor:
    """``correct_B``: 1 where the text embedding of the right noun is the nearest, else 0."""
    return ((features.z_BE @ w_CE.T).argmax(1) == features.label_B).float()


def score_class_means(train: Features, test: Features) -> float:
    """Accuracy of the nearest mean of the training features."""
    mean_CE = torch.stack(
        [train.z_BE[train.label_B == label].mean(0) for label in train.label_B.unique()]
    )
    return score_zero_shot(test, F.normalize(mean_CE, dim=-1)).mean().item()


def score_linear_probe(train: Features, test: Features, steps: int = 300) -> float:
    """Accuracy of a logistic regression on standardised features, weight decay 1e-2, Adam."""
    torch.manual_seed(0)
    mean_E, std_E = train.z_BE.mean(0), train.z_BE.std(0)
    probe = torch.nn.Linear(train.z_BE.shape[1], int(train.label_B.max()) + 1)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(probe((train.z_BE - mean_E) / std_E), train.label_B).backward()
        optimizer.step()
    logit_BC = probe((test.z_BE - mean_E) / std_E)
    return (logit_BC.argmax(1) == test.label_B).float().mean().item()


def measure(folder: str) -> dict[str, float]:
    """All figures, as fractions."""
    clip = TinyClip(folder)
    seen = clip.encode_images(PRETRAINING_NOUNS, PRETRAINING_RENDITIONS, 4, "test")
    known = [noun for noun in DEMO_NOUNS if noun not in UNSEEN_NOUNS]
    home = clip.encode_images(known, PRETRAINING_RENDITIONS, 8, "test")
    train = clip.encode_images(DEMO_NOUNS, DEMO_RENDITIONS, 7, "train")
    test = clip.encode_images(DEMO_NOUNS, DEMO_RENDITIONS, 16, "test")
    correct_B = score_zero_shot(test, clip.encode_nouns(DEMO_NOUNS))
    unseen_C = torch.tensor([noun in UNSEEN_NOUNS for noun in DEMO_NOUNS])
    unseen_B = unseen_C[test.label_B]
    seen_correct_B = score_zero_shot(seen, clip.encode_nouns(PRETRAINING_NOUNS))
    figures = {
        f"zero-shot, {len(PRETRAINING_NOUNS)} nouns in pre-training renditions":
            seen_correct_B.mean().item(),
        f"zero-shot, {len(known)} demo nouns in pre-training renditions":
            score_zero_shot(home, clip.encode_nouns(known)).mean().item(),
        "zero-shot, demo": correct_B.mean().item(),
        "zero-shot, demo, nouns with pre-training images": correct_B[~unseen_B].mean().item(),
        "zero-shot, demo, nouns without pre-training images": correct_B[unseen_B].mean().item(),
        "class means, demo": score_class_means(train, test),
        "linear probe, demo": score_linear_probe(train, test),
    }  # fmt: skip
    for number, rendition in enumerate(DEMO_RENDITIONS):
        here = correct_B[test.rendition_B == number]
        figures[f"zero-shot, demo, {rendition}"] = here.mean().item()
    for number, rendition in enumerate(PRETRAINING_RENDITIONS):
        here = seen_correct_B[seen.rendition_B == number]
        figures[f"zero-shot, pre-training, {rendition}"] = here.mean().item()
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as a table."""
    parser = build_parser(
        "python -m tests.demo_clip.measure",
        "Measure the demo's CLIP before it learns the demo (top-1 accuracy in %).",
    )
    parser.add_argument("--clip", default="pipeline/demo/clip", help="folder of the CLIP")
    options = parser.parse_args(arguments)
    for name, value in measure(options.clip).items():
        print(f"| {name} | {100 * value:.1f} |")


if __name__ == "__main__":
    main()
