"""General compression of bytes: the shortest of what deflate, zstd and xz make of them."""

import functools
import lzma
import zlib
from importlib import resources

import zstandard

from lepton_jax.core.files import ArtifactError

STORED, _DEFLATE, _ZSTD, _XZ, _PROGRAM = range(5)
_MAX_INFLATED = 1 << 30
_CHUNK = 1 << 20

# Read first by the manifest's coder: what most manifests say, so that a short one costs few bytes. Part of format version 1.
_WORDS = (
    b'float16bfloat16int8uint8boolint32float8_e4m3fn"recipe":{"metrics":{"batch":"static""sparsity":0.9"error":0.0'
    b'"opt_state":"embedding":""layers":""blocks_0":{"attention":{"query":{"key":{"value":{"out":{"mlp":{"LayerNorm_0":{'
    b'"linear1":{"conv1":{"norm1":{"batch_stats":{"BatchNorm_0":{"mean":"64","var":"64"},"scale":"1"},"params":{'
    b'"Conv_0":{"bias":"20","kernel":"5,5,1,20 c3"},"Conv_1":{"bias":"50 bfloat16","kernel":"3,3,64,128 c4"},'
    b'{"tree":{"params":{"Dense_0":{"bias":"300 float16","kernel":"784,300 c3"},"Dense_1":{"bias":"100","kernel":"300,100 c2"},'
    b'"Dense_2":{"bias":"10 float16","kernel":"100,10 c3"}}},"jax":"0.10.2"}'
)


def _deflate(data: bytes | bytearray) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _WORDS)
    return coder.compress(data) + coder.flush()


def _lzma(size: int) -> list[dict[str, int]]:
    """The settings for `size` bytes: a dictionary no larger than they are, since memory is taken for all of it."""
    dictionary = min(max(size, 1 << 12), 1 << 26)
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]


@functools.cache
def _programs() -> zstandard.ZstdCompressionDict:
    """What is read first by the programs' coder: whole programs of small networks, `experiments.benchmarks.program_bytes` chose
    them. Part of format version 1."""
    words = lzma.decompress(resources.files("lepton_jax.coding").joinpath("programs.xz").read_bytes())
    return zstandard.ZstdCompressionDict(words, zstandard.DICT_TYPE_RAWCONTENT)


def _zstd(data: bytes | bytearray, words: zstandard.ZstdCompressionDict | None = None) -> bytes:
    return zstandard.ZstdCompressor(19, write_checksum=False, write_content_size=False, dict_data=words).compress(data)


def compress(data: bytes | bytearray, *, program: bool = False) -> tuple[int, bytes]:
    """Return the shortest of the codecs' outputs, and which one it is; `program`: also of the one that has read programs."""
    outputs = [
        (STORED, bytes(data)),
        (_DEFLATE, _deflate(data)),
        (_ZSTD, _zstd(data)),
        (_XZ, lzma.compress(data, format=lzma.FORMAT_RAW, filters=_lzma(len(data)))),
    ]
    if program:
        outputs.append((_PROGRAM, _zstd(data, _programs())))
    return min(outputs, key=lambda pair: len(pair[1]))


def decompress(codec: int, stored: bytes, size: int) -> bytes:
    """Undo `compress`; never makes more than `size` bytes.

    Raises:
      ArtifactError: if `size` is beyond what is allowed or is not what the bytes hold, or the codec is unknown.
    """
    if size > _MAX_INFLATED:
        raise ArtifactError(f"declares {size} bytes, more than the {_MAX_INFLATED} allowed")
    try:
        data = _inflate(codec, stored, size)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
        raise ArtifactError(f"cannot be decompressed: {error}") from error
    if len(data) != size:
        raise ArtifactError(f"declares {size} bytes but holds {len(data)}{' or more' if len(data) > size else ''}")
    return data


def _inflate(codec: int, stored: bytes, size: int) -> bytes:
    if codec == STORED:
        return stored
    if codec == _DEFLATE:
        return zlib.decompressobj(-15, _WORDS).decompress(stored, size + 1)
    if codec in (_ZSTD, _PROGRAM):
        words = _programs() if codec == _PROGRAM else None
        # Chunk by chunk: `read` takes all the room that it is asked for, whatever there is to read.
        with zstandard.ZstdDecompressor(words, max_window_size=1 << 24).stream_reader(stored) as reader:
            out = bytearray()
            while chunk := reader.read(min(_CHUNK, size + 1 - len(out))):
                out += chunk
            return bytes(out)
    if codec == _XZ:
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_lzma(size)).decompress(stored, size + 1)
    raise ArtifactError(f"has codec {codec}, which this version does not know")
