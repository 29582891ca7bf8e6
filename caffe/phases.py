"""Which layers of a prototxt a net has: those whose `include` and `exclude` rules its phase, level and stages meet."""

from __future__ import annotations

from . import glog as log
from .errors import CaffeError
from .proto.caffe_pb2 import NetParameter, NetState, NetStateRule


def _rule_met(state: NetState, rule: NetStateRule, layer: str) -> bool:
    """Whether a net's state meets all that one include or exclude rule asks for."""
    if rule.HasField("phase") and rule.phase != state.phase:
        log.info(
            "net.cpp:296",
            f"The NetState phase ({state.phase}) differed from the phase ({rule.phase}) "
            f"specified by a rule in layer {layer}",
        )
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        return False
    stages = set(state.stage)
    return stages.issuperset(rule.stage) and stages.isdisjoint(rule.not_stage)


def filter_net(param: NetParameter) -> NetParameter:
    """The net without the layers that its state (phase, level, stages) leaves out."""
    kept = NetParameter()
    kept.CopyFrom(param)
    kept.ClearField("layer")
    for layer in param.layer:
        if layer.include and layer.exclude:
            raise CaffeError(f"layer {layer.name!r}: has include and exclude rules; expected one kind")
        rules = layer.include or layer.exclude
        met = any(_rule_met(param.state, rule, layer.name) for rule in rules)
        if not rules or met == bool(layer.include):
            kept.layer.add().CopyFrom(layer)
    return kept
