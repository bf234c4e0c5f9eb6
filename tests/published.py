"""What the published implementation's numbers were computed from: weights, inputs, and our model of a configuration."""

import zlib

import numpy as np
import torch

from mae_dfer import create_model

POOL = {"region": "representative", "org": "local", "all": "all"}


def published_weights(shapes):
    """The rule of tests/golden/README.md: a seeded normal tensor for each published name."""
    weights = {}
    for name, shape in shapes.items():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            values = 1 + 0.1 * values
        elif name.endswith("bias"):
            values = 0.1 * values
        elif name.endswith(("tokens", "token")):
            values = 0.5 * values
        else:
            values = values / np.sqrt(np.prod(shape[1:]))
        weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights


def seeded(seed, shape):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(values).double()


def build(config, **overrides):
    """Our model for a configuration of the published code."""
    sizes = ("img_size", "num_frames", "embed_dim", "depth", "num_heads", "num_classes")
    options = {name: config[name] for name in sizes if name in config} | overrides
    lgi, published = config["attention"] == "local_global", config["lg"]
    if lgi:
        options["region_size"] = published["lg_region_size"]
        options["pool"] = POOL[published.get("lg_classify_token_type", "region")]
        if published.get("lg_first_attn_type") == "cross":
            options["local_attention"] = "representative"
        options["global_attention"] = not published.get("lg_no_second", False)
        options["exchange"] = "none" if published.get("lg_no_third") else published.get("lg_third_attn_type", "cross")
        if published.get("lg_attn_param_sharing_first_third"):
            options["share_attention"] = "local_exchange"
        if published.get("lg_attn_param_sharing_all"):
            options["share_attention"] = "all"
    name = "lgi_former_base_patch16_160" if lgi else "vit_base_patch16_160"
    if "decoder_depth" in config:
        name = "mae_" + name
        options |= {key: value for key, value in config.items() if key.startswith("decoder_")}
        options["decoder_positions"] = "published"
    return create_model(name, **options)
