"""Networks written in Python: pycaffe's NetSpec, whose `to_proto` gives the NetParameter that a prototxt holds.

    from caffe import NetSpec, layers as L, params as P

    n = NetSpec()
    n.data, n.label = L.Data(source="train_lmdb", backend=P.Data.LMDB, batch_size=64, ntop=2)
    n.conv1 = L.Convolution(n.data, kernel_size=5, num_output=20, weight_filler=dict(type="xavier"))
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.relu1 = L.ReLU(n.pool1, in_place=True)
    n.loss = L.SoftmaxWithLoss(n.relu1, n.label)
    print(n.to_proto())

A layer and its first top are named after the attribute that the top was assigned to; what was assigned to none is
named after its type and a running number.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from .errors import CaffeError
from .layers import LAYERS
from .proto import caffe_pb2


def param_name_dict() -> dict[str, str]:
    """The field of LayerParameter, without its `_param`, that belongs to a layer type: "Convolution": "convolution".

    It is found by the name of the field's message, so that there are some that are no layer type ("Transformation").
    """
    fields = (f for f in caffe_pb2.LayerParameter.DESCRIPTOR.fields if f.name.endswith("_param"))
    return {f.message_type.name.removesuffix("Parameter"): f.name.removesuffix("_param") for f in fields}


# Types that have another's parameters; pycaffe wants these as convolution_param=dict(...), which goes as well.
_param_names = {**param_name_dict(), "Deconvolution": "convolution", "Im2col": "convolution"}


def _suggest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _field(message: Message, name: str, where: str) -> FieldDescriptor:
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        names = list(message.DESCRIPTOR.fields_by_name)
        hint = _suggest(name, names) or f"; expected one of {', '.join(sorted(names))}"
        raise CaffeError(f"{where}{message.DESCRIPTOR.name} has no field {name!r}{hint}")
    return field


def assign_proto(proto: Message, name: str, val: Any, where: str = "") -> None:
    """Set one field of a message from a Python value, as pycaffe does.

    Parameters
    ----------
    proto, name: the message and the field's name.
    val: a number, string, bytes or message; a dict, whose items are assigned to the fields of a message (an empty one
        leaves the field unset); for a repeated field a list (or tuple) of these, which is appended, or one of them.
    where: what an error names first.

    Raises CaffeError for a field that the message has not and a value that does not fit.
    """
    field = _field(proto, name, f"{where}: " if where else "")
    where = f"{where or proto.DESCRIPTOR.name}: {name}"
    target = getattr(proto, name)
    if field.is_repeated and not isinstance(val, (list, tuple)):
        val = [val]
    try:
        if field.message_type is None:
            if field.is_repeated:
                target.extend(val)
            else:
                setattr(proto, name, val)
        else:
            for item in val if field.is_repeated else [val]:
                inner = target.add() if field.is_repeated else target
                if isinstance(item, Mapping):
                    for key, value in item.items():
                        assign_proto(inner, key, value, where)
                elif isinstance(item, Message):
                    inner.CopyFrom(item)
                else:
                    raise TypeError(f"expected a dict of {field.message_type.name}'s fields")
    except (TypeError, ValueError) as error:
        raise CaffeError(f"{where} = {val!r}: {error}") from error


class Top:
    """A blob that a layer writes: the `n`-th top of `fn`. It is what `L.SomeType(...)` returns and takes as bottom."""

    def __init__(self, fn: Function, n: int) -> None:
        self.fn = fn
        self.n = n

    def to_proto(self) -> caffe_pb2.NetParameter:
        """The net that ends in this blob."""
        return to_proto(self)


class Function:
    """One layer: its type, its bottoms and its parameters.

    Parameters
    ----------
    type_name: Caffe's name of the layer's type.
    inputs: the bottoms, in order.
    params: fields of the type's own parameter message (`num_output=20`) or of LayerParameter (`name`, `param`,
        `include`, `loss_weight`, `convolution_param=dict(...)`); besides, `ntop` (number of tops, default 1) and
        `in_place` (the tops are the bottoms, all of them; default False).

    Raises CaffeError for a parameter that neither message has or whose value does not fit, TypeError for a bottom
    that is not a blob.
    """

    def __init__(self, type_name: str, inputs: tuple[Top, ...], params: Mapping[str, Any]) -> None:
        for index, top in enumerate(inputs):
            if not isinstance(top, Top):
                raise TypeError(
                    f"{type_name}: bottom {index} is {top!r}; expected a blob, as a layer with one top returns"
                )
        self.type_name = type_name
        self.inputs = inputs
        self.params = dict(params)
        self.ntop = self.params.pop("ntop", 1)
        self.in_place = self.params.pop("in_place", False)
        if not isinstance(self.ntop, int) or self.ntop < 0:
            raise CaffeError(f"{type_name}: ntop = {self.ntop!r}; expected the number of tops, 0 or more")
        if self.in_place and self.ntop > len(inputs):
            raise CaffeError(
                f"{type_name}: in_place with {self.ntop} tops and {len(inputs)} bottoms; expected a bottom each"
            )
        self.tops = tuple(Top(self, n) for n in range(self.ntop))
        self.layer()  # a wrong parameter is an error here, where it was written, not later in to_proto

    def layer(self) -> caffe_pb2.LayerParameter:
        """The layer without its name and its blobs."""
        layer = caffe_pb2.LayerParameter(type=self.type_name)
        own_name = _param_names.get(self.type_name)
        own = getattr(layer, f"{own_name}_param") if own_name else None
        for name, value in self.params.items():
            if own is not None and name in own.DESCRIPTOR.fields_by_name:
                assign_proto(own, name, value, self.type_name)
            elif name in layer.DESCRIPTOR.fields_by_name:
                assign_proto(layer, name, value, self.type_name)
            else:
                raise CaffeError(self._unknown(name, own))
        return layer

    def _unknown(self, name: str, own: Message | None) -> str:
        general = list(caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name)
        if own is None:
            return (
                f"{self.type_name}: no parameter {name!r}; the type has no message of its own, so expected a field of "
                f"LayerParameter, such as convolution_param=dict(...){_suggest(name, general)}"
            )
        names = list(own.DESCRIPTOR.fields_by_name)
        hint = _suggest(name, names + general) or f"; {own.DESCRIPTOR.name} has {', '.join(sorted(names))}"
        return f"{self.type_name}: no parameter {name!r}{hint}"


class _Writer:
    """Writes layers in the order in which they depend on each other, giving names to what has none."""

    def __init__(self, names: dict[Any, str]) -> None:
        self.names = names
        self.counts: Counter[str] = Counter()
        self.layers: dict[Function, caffe_pb2.LayerParameter] = {}

    def name(self, of: Top | Function) -> str:
        if of not in self.names:
            type_name = of.fn.type_name if isinstance(of, Top) else of.type_name
            self.counts[type_name] += 1
            self.names[of] = type_name + str(self.counts[type_name])
        return self.names[of]

    def write(self, of: Top | Function) -> None:
        # A stack, since a chain of unnamed layers may be deeper than Python recurses.
        stack = [of.fn if isinstance(of, Top) else of]
        while stack:
            fn = stack[-1]
            missing = [top.fn for top in fn.inputs if top.fn not in self.layers]
            if missing:
                stack += reversed(missing)
                continue
            stack.pop()
            if fn not in self.layers:
                self.layers[fn] = self._layer(fn)

    def _layer(self, fn: Function) -> caffe_pb2.LayerParameter:
        bottoms = [self.layers[top.fn].top[top.n] for top in fn.inputs]
        tops = bottoms if fn.in_place else [self.name(top) for top in fn.tops]
        # also where a name is given and replaces this one, since the running numbers count all layers
        name = self.name(fn.tops[0] if fn.tops else fn)
        layer = caffe_pb2.LayerParameter(name=name, type=fn.type_name, bottom=bottoms, top=tops)
        layer.MergeFrom(fn.layer())
        return layer


def to_proto(*tops: Top | Function) -> caffe_pb2.NetParameter:
    """The net that computes `tops`, its blobs named after their layers' types (`Convolution1`, …)."""
    writer = _Writer({})
    for top in tops:
        writer.write(top)
    return caffe_pb2.NetParameter(layer=writer.layers.values())


class NetSpec:
    """A net under construction: blobs by name, as attributes (`n.conv1 = …`) or items (`n["conv1"] = …`).

    Assigning a name again replaces the blob; layers already built on the old one keep it.
    """

    tops: dict[str, Top | Function]

    def __init__(self) -> None:
        super().__setattr__("tops", {})

    def __setattr__(self, name: str, value: Top | Function) -> None:
        if not isinstance(value, (Top, Function)):
            raise TypeError(f"{name} = {value!r}; expected what one layer with one top returns")
        self.tops[name] = value

    def __getattr__(self, name: str) -> Any:
        try:
            return self.tops[name]
        except KeyError:
            raise AttributeError(f"the net has no blob {name!r}{_suggest(name, self.tops)}") from None

    def __setitem__(self, name: str, value: Top | Function) -> None:
        self.__setattr__(name, value)

    def __getitem__(self, name: str) -> Any:
        return self.tops[name]

    def __delattr__(self, name: str) -> None:
        if name not in self.tops:
            raise AttributeError(f"the net has no blob {name!r}{_suggest(name, self.tops)}")
        del self.tops[name]

    def __delitem__(self, name: str) -> None:
        del self.tops[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tops

    def __iter__(self) -> Iterator[str]:
        return iter(self.tops)

    def __len__(self) -> int:
        return len(self.tops)

    def keys(self) -> list[str]:
        """The names, in the order of their assignment."""
        return list(self.tops)

    def vals(self) -> list[Top | Function]:
        """The blobs, in the order of their assignment."""
        return list(self.tops.values())

    def update(self, name: str, params: Mapping[str, Any]) -> None:
        """Set or replace parameters of the layer that makes the blob `name`."""
        top = self.tops[name]
        fn = top.fn if isinstance(top, Top) else top
        fn.params.update(params)
        fn.layer()  # a wrong parameter is an error here

    def to_proto(self) -> caffe_pb2.NetParameter:
        """The net as a NetParameter: every layer that a named blob needs, each after the layers it reads."""
        writer = _Writer({top: name for name, top in self.tops.items()})
        for top in self.tops.values():
            writer.write(top)
        return caffe_pb2.NetParameter(layer=writer.layers.values())


class Layers:
    """`layers.TYPE(*bottoms, **params)` makes a layer and returns its top: a tuple for ntop > 1, the Function for 0."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in LAYERS:
            raise AttributeError(f"no layer type {name!r}{_suggest(name, LAYERS)}")

        def layer(*bottoms: Top, **params: Any) -> Top | Function | tuple[Top, ...]:
            fn = Function(name, bottoms, params)
            if fn.ntop == 0:
                return fn
            return fn.tops[0] if fn.ntop == 1 else fn.tops

        layer.__name__ = layer.__qualname__ = name
        return layer


class _Enums:
    """`params.Pooling.MAX`: the values of the enums that a parameter message declares."""

    def __init__(self, name: str, message: Any) -> None:
        self._name = name
        self._values = dict(message.DESCRIPTOR.enum_values_by_name)

    def __getattr__(self, name: str) -> int:
        values = self.__dict__["_values"]
        if name not in values:
            known = ", ".join(values) or "none"
            raise AttributeError(f"{self._name} has no constant {name!r}; it has: {known}")
        return values[name].number

    def __dir__(self) -> list[str]:
        return list(self._values)


class Parameters:
    """`params.TYPE.CONSTANT` is the value of an enum of the message TYPEParameter (`params.Pooling.AVE`)."""

    def __getattr__(self, name: str) -> _Enums:
        message = getattr(caffe_pb2, f"{name}Parameter", None)
        if message is None:
            names = [n.removesuffix("Parameter") for n in vars(caffe_pb2) if n.endswith("Parameter")]
            raise AttributeError(f"no parameter message {name}Parameter{_suggest(name, names)}")
        return _Enums(name, message)


layers = Layers()
params = Parameters()
