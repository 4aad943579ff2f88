"""Entropy coders: masks, symbols and numbers to bytes and back.

`arrays` codes numbers, `tensor_codes` a tensor of few codes, `symbols` a stream of them, `sparse_index` where a mask is set:
each tries its coders and keeps the shortest `streams.Writer`. The coders: `rans`, `huffman`, `symbol_bits` of symbols;
`mask_bits`, `mask_rows`, `mask_classes`, `gaps`, `groups` of masks; `bit_packing` and `compression` of anything. `rangecoder`
and `batch_mixer` turn adaptive predictions into bytes.
"""

from lepton_jax.coding.streams import CATEGORIES

__all__ = ["CATEGORIES"]
