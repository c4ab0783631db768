"""Methods that train part of the model itself, or nothing."""

from __future__ import annotations

import json

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from lodarepro.config import BitFit, Ft, FtQv, FtTop, OneShot
from lodarepro.data.tokenise import Layout
from lodarepro.methods.base import Method
from lodarepro.model import GPT2


class SplitProjection(nn.Module):
    """The weights W (d_in, d_out) of a fused projection as one parameter for each slice, named after it.

    An optimizer takes a parameter or leaves it: only apart can some of the slices train.
    """

    def __init__(self, weight: Tensor, slices: dict[str, slice]) -> None:
        super().__init__()
        self.names = tuple(slices)
        for name, columns in slices.items():
            self.register_parameter(name, nn.Parameter(weight[:, columns].detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d_in) to (..., d_out), the slices side by side as in the fused product."""
        return torch.cat([x @ self.get_parameter(name) for name in self.names], dim=-1)

    def merged(self) -> Tensor:
        """The fused weight W (d_in, d_out)."""
        return torch.cat([self.get_parameter(name) for name in self.names], dim=-1)

    def macs(self) -> int:
        """Multiply-accumulate operations a token, as the fused product's: d_in d_out."""
        return sum(p.numel() for p in self.parameters())


def attach_ft(model: GPT2, config: Ft, generator: torch.Generator) -> None:
    """Full fine-tuning: every parameter trains; 354,823,168 on GPT-2 Medium (papers print 354.92M)."""
    del config, generator
    model.requires_grad_(True)


def attach_ft_top(model: GPT2, config: FtTop, generator: torch.Generator) -> None:
    """Fine-tuning of the highest blocks (Li & Liang 2021, FT-top2).

    25,192,448 parameters for two blocks of GPT-2 Medium, as they count; their code trains the final
    LayerNorm too, 25,194,496.
    """
    del generator
    for block in model.h[-config.blocks :]:
        block.requires_grad_(True)
    model.ln_f.requires_grad_(config.final_norm)


def attach_ft_qv(model: GPT2, config: FtQv, generator: torch.Generator) -> None:
    """Fine-tuning of slices of the q/k/v weight, without the bias (LoDA paper, Table 1, FT^{Wq,Wv}).

    L d^2 parameters a slice: 50,331,648 for q and v on GPT-2 Medium, which the paper prints as 48.00M.
    """
    del generator
    for dense in model.denses("q"):
        split = SplitProjection(dense.weight, dense.slices).requires_grad_(False)
        for target in config.targets:
            split.get_parameter(target).requires_grad_(True)
        dense.replace(split)


def attach_bitfit(model: GPT2, config: BitFit, generator: torch.Generator) -> None:
    """BitFit: every bias trains and nothing else (Ben Zaken et al. 2022, section 3).

    L (9 d + 2 d) + d parameters: 271,360 on GPT-2 Medium, 221,184 without those of the LayerNorms.
    """
    del generator
    for module in model.modules():
        bias = getattr(module, "bias", None)
        if bias is not None and (config.layer_norm or not isinstance(module, nn.LayerNorm)):
            bias.requires_grad_(True)


def attach_one_shot(model: GPT2, config: OneShot, generator: torch.Generator) -> None:
    """In-context learning: nothing trains, 0 parameters; all is in the layout."""
    del model, config, generator


def layout_one_shot(config: OneShot, tokenizer: Tokenizer) -> Layout:
    """A task description and one example around each context (LoDA paper, section 4 and footnote 4).

    The text is what someone would type, `prompt + context + after`, tokenised as a whole: the prompt's last
    space belongs to the context's first token. The default prompt describes E2E; another dataset needs one of
    its own.
    """

    def apply(context: list[int]) -> list[int]:
        # Byte-level BPE gives back every text as it was; the context's last id is the separator.
        text = config.prompt + tokenizer.decode(context[:-1], skip_special_tokens=False) + config.after
        return tokenizer.encode(text, add_special_tokens=False).ids

    return Layout(key=json.dumps([config.name, config.prompt, config.after]), apply=apply)


FT = Method(attach=attach_ft)
FT_TOP = Method(attach=attach_ft_top)
FT_QV = Method(attach=attach_ft_qv)
BITFIT = Method(attach=attach_bitfit)
ONE_SHOT = Method(attach=attach_one_shot, layout=layout_one_shot)
