"""The claims about the place of layer normalisation can fail."""

from allyouneed.papers.pre_layer_norm.experiment import depths

from .sabotage import Breakage, Sabotage, as_if, exchanged, in_turn

PAIRS = list(zip(depths("post"), depths("pre"), strict=True))
BROKEN: dict[str, Breakage] = {}
SABOTAGES: dict[str, Sabotage] = {
    "post_gradient_keeps_its_size": in_turn(*(as_if(post, pre) for post, pre in PAIRS)),
    "pre_gradient_falls_with_depth": in_turn(*(as_if(pre, post) for post, pre in PAIRS)),
    "post_gradient_grows_without_a_source": as_if("post_language", "post_6"),
    "pre_gradient_is_level": as_if("pre_6", "post_6"),
    "post_lags_without_warmup": exchanged("pre_without_warmup", "post_without_warmup"),
    "warmup_helps_post": exchanged("post_with_warmup", "post_without_warmup"),
    "pre_without_matches_post_with": exchanged("pre_without_warmup", "post_with_warmup"),
    "pre_needs_no_warmup": as_if("pre_without_warmup", "pre_with_warmup"),
}
