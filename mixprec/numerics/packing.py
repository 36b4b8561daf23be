"""Codes of a few bits packed without gaps: a row is one stream of bits, the first code in the lowest bits, cut into
words of 32 bits.

compressed-tensors (from 0.19 on) and GPTQ pack alike, the former along a weight's rows, the latter down its columns. In
2, 4 and 8 bits no code lies across two words; in 3 bits 32 codes fill 3 words.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from mixprec.numerics.kernels import operation
from mixprec.numerics.words import WORD, words

#: Codes that fill whole bytes, whatever their width: 8 codes of b bits take b bytes.
_OCTET = 8


@operation
def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (rows, n), whole numbers from 0 to 2^bits - 1, as words (rows, ⌈n · bits / 32⌉) int32.

    The last word of a row is filled up with zeros.
    """
    assert sys.byteorder == "little"
    rows, count = codes.shape
    width = words(count, bits)
    # Rows filled up to whole words and to whole octets of codes, so that both ways of cutting them fit.
    padded = torch.nn.functional.pad(codes.to(torch.uint8), (0, -count % WORD))
    octets = padded.reshape(rows, -1, _OCTET)
    if bits == 8:
        stream = padded
    elif bits in (2, 4):
        per = 8 // bits
        parts = padded.reshape(rows, -1, per)
        stream = parts[..., 0].clone()
        for place in range(1, per):
            stream |= parts[..., place] << (bits * place)
    else:
        wide = torch.int32 if bits * _OCTET <= WORD else torch.int64
        joined = octets[..., 0].to(wide)
        for place in range(1, _OCTET):
            joined |= octets[..., place].to(wide) << (bits * place)
        stream = joined.unsqueeze(-1).view(torch.uint8)[..., :bits].reshape(rows, -1)
    # Flat, as a single row may have a stride that forbids to view its bytes as words.
    return stream.reshape(-1).contiguous().view(torch.int32).reshape(rows, -1)[:, :width].contiguous()


@operation
def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of ``pack``: words (rows, ⌈count · bits / 32⌉) int32 as codes (rows, count) uint8."""
    assert sys.byteorder == "little"
    rows = len(packed)
    stream = packed.contiguous().view(torch.uint8).view(rows, -1)
    if bits == 8:
        return stream[:, :count].contiguous()
    octets = -(-count // _OCTET)
    stream = torch.nn.functional.pad(stream, (0, max(0, octets * bits - stream.shape[1])))[:, : octets * bits]
    joined = torch.nn.functional.pad(stream.reshape(rows, octets, bits), (0, _OCTET - bits)).contiguous()
    wide = joined.view(torch.int64)
    mask = 2**bits - 1
    codes = torch.empty(rows, octets, _OCTET, dtype=torch.uint8, device=packed.device)
    for place in range(_OCTET):
        codes[..., place] = ((wide[..., 0] >> (bits * place)) & mask).to(torch.uint8)
    return codes.view(rows, -1)[:, :count].contiguous()
