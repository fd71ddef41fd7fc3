"""A plain CLIP in OpenCLIP's layout, by PyTorch's own layers, with random weights."""

import collections

import numpy as np
import torch

from tests.models import parity

# Sizes of a small one, with heads of 64 channels.
SIZES = dict(words=90, text=128, image=192, joint=24, patch=8, grid=2, layers=2)


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attn = torch.nn.MultiheadAttention(width, width // 64, batch_first=True)
        parts = {
            "c_fc": torch.nn.Linear(width, 2 * width),
            "gelu": torch.nn.GELU(),
            "c_proj": torch.nn.Linear(2 * width, width),
        }
        self.mlp = torch.nn.Sequential(collections.OrderedDict(parts))

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(torch.nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.resblocks = torch.nn.ModuleList([Block(width) for _ in range(layers)])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(torch.nn.Module):
    def __init__(self, image, joint, patch, grid, layers):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, image, patch, patch, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.zeros(image))
        self.positional_embedding = torch.nn.Parameter(torch.zeros(grid**2 + 1, image))
        self.ln_pre, self.ln_post = torch.nn.LayerNorm(image), torch.nn.LayerNorm(image)
        self.transformer = Transformer(image, layers)
        self.proj = torch.nn.Parameter(torch.zeros(image, joint))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).mT
        first = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, x], 1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class OpenClip(torch.nn.Module):
    def __init__(self, words, text, image, joint, patch, grid, layers):
        super().__init__()
        self.visual = Visual(image, joint, patch, grid, layers)
        self.transformer = Transformer(text, layers)
        self.token_embedding = torch.nn.Embedding(words, text)
        self.positional_embedding = torch.nn.Parameter(torch.zeros(77, text))
        self.ln_final = torch.nn.LayerNorm(text)
        self.text_projection = torch.nn.Parameter(torch.zeros(text, joint))
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))

    def encode_text(self, ids):
        mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection


def random(**changes):
    """Returns a network with random weights."""
    return parity.randomise(OpenClip(**SIZES | changes))


def embeddings(network, ids, pixels):
    """Returns the embeddings of ids [n, 77] and of pixels [n, side, side, 3], as arrays."""
    with torch.no_grad():
        text = network.encode_text(torch.tensor(np.asarray(ids)).long())
        seen = network.visual(torch.tensor(np.moveaxis(np.asarray(pixels), -1, 1).copy()))
    return text.numpy(), seen.numpy()
