from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    BOOL: _ClassVar[DType]
    INT8: _ClassVar[DType]
    UINT8: _ClassVar[DType]
    INT16: _ClassVar[DType]
    UINT16: _ClassVar[DType]
    INT32: _ClassVar[DType]
    UINT32: _ClassVar[DType]
    INT64: _ClassVar[DType]
    UINT64: _ClassVar[DType]
    FLOAT16: _ClassVar[DType]
    BFLOAT16: _ClassVar[DType]
    FLOAT32: _ClassVar[DType]
    FLOAT64: _ClassVar[DType]

class PictureCodec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_CODEC_UNSPECIFIED: _ClassVar[PictureCodec]
    DEFLATED_DIFFERENCES: _ClassVar[PictureCodec]
DTYPE_UNSPECIFIED: DType
BOOL: DType
INT8: DType
UINT8: DType
INT16: DType
UINT16: DType
INT32: DType
UINT32: DType
INT64: DType
UINT64: DType
FLOAT16: DType
BFLOAT16: DType
FLOAT32: DType
FLOAT64: DType
PICTURE_CODEC_UNSPECIFIED: PictureCodec
DEFLATED_DIFFERENCES: PictureCodec

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PackedPicture(_message.Message):
    __slots__ = ("codec", "height", "width", "data")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    codec: PictureCodec
    height: int
    width: int
    data: bytes
    def __init__(self, codec: _Optional[_Union[PictureCodec, str]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Camera(_message.Message):
    __slots__ = ("name", "picture", "packed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    name: str
    picture: Tensor
    packed: PackedPicture
    def __init__(self, name: _Optional[str] = ..., picture: _Optional[_Union[Tensor, _Mapping]] = ..., packed: _Optional[_Union[PackedPicture, _Mapping]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("actor_id", "episode_id", "step_index", "task", "state", "cameras", "proposed_action", "executed_action", "human", "held", "policy_version", "reward", "success", "terminated", "truncated")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_ACTION_FIELD_NUMBER: _ClassVar[int]
    EXECUTED_ACTION_FIELD_NUMBER: _ClassVar[int]
    HUMAN_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    TERMINATED_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    episode_id: str
    step_index: int
    task: str
    state: Tensor
    cameras: _containers.RepeatedCompositeFieldContainer[Camera]
    proposed_action: Tensor
    executed_action: Tensor
    human: bool
    held: bool
    policy_version: int
    reward: float
    success: bool
    terminated: bool
    truncated: bool
    def __init__(self, actor_id: _Optional[str] = ..., episode_id: _Optional[str] = ..., step_index: _Optional[int] = ..., task: _Optional[str] = ..., state: _Optional[_Union[Tensor, _Mapping]] = ..., cameras: _Optional[_Iterable[_Union[Camera, _Mapping]]] = ..., proposed_action: _Optional[_Union[Tensor, _Mapping]] = ..., executed_action: _Optional[_Union[Tensor, _Mapping]] = ..., human: bool = ..., held: bool = ..., policy_version: _Optional[int] = ..., reward: _Optional[float] = ..., success: bool = ..., terminated: bool = ..., truncated: bool = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("actor_id", "episode_id", "num_steps", "outcome", "total_reward", "num_interventions")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_REWARD_FIELD_NUMBER: _ClassVar[int]
    NUM_INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    episode_id: str
    num_steps: int
    outcome: str
    total_reward: float
    num_interventions: int
    def __init__(self, actor_id: _Optional[str] = ..., episode_id: _Optional[str] = ..., num_steps: _Optional[int] = ..., outcome: _Optional[str] = ..., total_reward: _Optional[float] = ..., num_interventions: _Optional[int] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("step", "summary")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    step: Step
    summary: Summary
    def __init__(self, step: _Optional[_Union[Step, _Mapping]] = ..., summary: _Optional[_Union[Summary, _Mapping]] = ...) -> None: ...

class CameraSize(_message.Message):
    __slots__ = ("name", "height", "width")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    height: int
    width: int
    def __init__(self, name: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class StreamSpec(_message.Message):
    __slots__ = ("fps", "state_names", "action_names", "cameras", "robot_type")
    FPS_FIELD_NUMBER: _ClassVar[int]
    STATE_NAMES_FIELD_NUMBER: _ClassVar[int]
    ACTION_NAMES_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    ROBOT_TYPE_FIELD_NUMBER: _ClassVar[int]
    fps: float
    state_names: _containers.RepeatedScalarFieldContainer[str]
    action_names: _containers.RepeatedScalarFieldContainer[str]
    cameras: _containers.RepeatedCompositeFieldContainer[CameraSize]
    robot_type: str
    def __init__(self, fps: _Optional[float] = ..., state_names: _Optional[_Iterable[str]] = ..., action_names: _Optional[_Iterable[str]] = ..., cameras: _Optional[_Iterable[_Union[CameraSize, _Mapping]]] = ..., robot_type: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("actor_id", "spool_id", "spec", "min_protocol", "max_protocol", "features")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    SPOOL_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    MIN_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MAX_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    spool_id: str
    spec: StreamSpec
    min_protocol: int
    max_protocol: int
    features: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, actor_id: _Optional[str] = ..., spool_id: _Optional[str] = ..., spec: _Optional[_Union[StreamSpec, _Mapping]] = ..., min_protocol: _Optional[int] = ..., max_protocol: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "next_sequence", "weights_version", "features")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    next_sequence: int
    weights_version: int
    features: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol: _Optional[int] = ..., next_sequence: _Optional[int] = ..., weights_version: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("actor_id", "spool_id", "protocol", "first_sequence", "items")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    SPOOL_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    spool_id: str
    protocol: int
    first_sequence: int
    items: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, actor_id: _Optional[str] = ..., spool_id: _Optional[str] = ..., protocol: _Optional[int] = ..., first_sequence: _Optional[int] = ..., items: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("next_sequence",)
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    next_sequence: int
    def __init__(self, next_sequence: _Optional[int] = ...) -> None: ...

class WeightRequest(_message.Message):
    __slots__ = ("actor_id", "protocol", "newer_than")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NEWER_THAN_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    protocol: int
    newer_than: int
    def __init__(self, actor_id: _Optional[str] = ..., protocol: _Optional[int] = ..., newer_than: _Optional[int] = ...) -> None: ...

class TensorHead(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class WeightHead(_message.Message):
    __slots__ = ("version", "checksum", "tensors", "num_steps", "own_steps")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    OWN_STEPS_FIELD_NUMBER: _ClassVar[int]
    version: int
    checksum: str
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHead]
    num_steps: int
    own_steps: int
    def __init__(self, version: _Optional[int] = ..., checksum: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[TensorHead, _Mapping]]] = ..., num_steps: _Optional[int] = ..., own_steps: _Optional[int] = ...) -> None: ...

class WeightChunk(_message.Message):
    __slots__ = ("head", "data")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    head: WeightHead
    data: bytes
    def __init__(self, head: _Optional[_Union[WeightHead, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...
