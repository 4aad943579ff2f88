"""What the rows of studies are called in figures: words and the papers' own names, in place of identifiers."""

NAMES = {
    "straight_through": "straight-through",
    "lsq": "LSQ",
    "lsq_plus": "LSQ+",
    "pact": "PACT",
    "dorefa": "DoReFa",
    "one_shot": "one shot",
    "gradual_layer": "gradual, each layer alike",
    "gradual_erk": "gradual, ERK",
    "gradual_global": "gradual, global",
    "surgery": "dynamic surgery",
    "ac_dc": "AC/DC",
    "soft_threshold": "soft threshold",
    "static": "static mask",
    "set": "SET",
    "rigl": "RigL",
    "static_adam": "static mask",
    "set_adam": "SET",
    "rigl_adam": "RigL",
    "rigl_plain_adam": "RigL, plain Adam",
    "weight_rewinding": "weights rewound",
    "rate_rewinding": "rate rewound",
    "random_reinit": "drawn again",
    "l1": "L1",
    "l2": "L2",
    "taylor": "Taylor",
    "fpgm": "FPGM",
    "bn_scale": "batch norm's scale",
    "l1_global": "L1, global",
    "taylor_global": "Taylor, global",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "magnitude": "magnitude",
    "distil": "distilled",
    "prune": "pruned",
    "quantize": "4 bits",
    "cast": "bfloat16",
    "low_rank": "low rank",
    "none": "labels alone",
    "hinton_t1": "soft, T = 1",
    "hinton_t2": "soft, T = 2",
    "hinton_t4": "soft, T = 4",
    "hinton_t8": "soft, T = 8",
    "dkd": "DKD",
    "fitnets": "FitNets",
    "at": "attention",
    "rkd": "RKD",
    "char_lm": "character transformer",
    "resnet20": "ResNet-20",
}
_ENDS = {"shuffle": "shuffled", "reinit": "drawn again", "invert": "inverted"}


def readable(name: str) -> str:
    """Return a row's name as it stands in a figure.

    Example:
      >>> readable("lsq_plus"), readable("snip_shuffle"), readable("low_rank+distil-then-prune"), readable("AdaRound, range")
      ('LSQ+', 'SNIP, shuffled', 'low rank + distilled, then pruned', 'AdaRound, range')
    """
    if name in NAMES:
        return NAMES[name]
    head, _, end = name.rpartition("_")
    if end in _ENDS:
        return f"{readable(head)}, {_ENDS[end]}"
    if "-then-" in name:
        return ", then ".join(readable(part) for part in name.split("-then-"))
    if "+" in name:
        return " + ".join(readable(part) for part in name.split("+"))
    head, mark, rest = name.partition(": ")
    return f"{NAMES[head]}{mark}{rest}" if mark and head in NAMES else name.replace("_", " ")
