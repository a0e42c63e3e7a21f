"""What can go wrong, as one tree; every error says what, where, and what to do next.

EdgeCompressError(message, hint)
├── RecipeError       a recipe, job or profile says what cannot be done (file, step, key)
├── PluginNotFound    no such technique, exporter, runtime or device; the nearest name is in the hint
├── RecordError       unknown schema, wrong hash, missing file in a folder that we wrote
├── ModelError        a model folder or family that cannot be taken, and why
├── AudioError        no usable audio where audio was asked for
├── TechniqueError    which technique, which parameters; the cause is chained
├── ExportError       which format; the cause is chained
│   └── ParityError   output, greatest difference, tolerance, length
└── DeviceError       something between here and the board
    ├── Unreachable       nothing answers at that address in time
    ├── HostKeyUnknown    the key is not pinned: `edgecompress device add` shows and pins it
    ├── HostKeyChanged    another key than the pinned one: nothing was sent
    ├── Refused           the device (or its sshd) says no: key, user, precondition
    ├── RuntimeMissing    the device's Python cannot import the runtime
    ├── AgentFailed       the agent told us what failed
    ├── AgentDied         the event stream just stopped: exit status and last event
    ├── DeviceTimeout     the job ran past its limit and its process group was ended
    ├── DeviceFull        no space left on the device
    └── Busy              another session measures on this device
"""

from __future__ import annotations


class EdgeCompressError(Exception):
    """Root of all errors a user can act on: ``message`` says what and where, ``hint`` what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RecipeError(EdgeCompressError):
    """A recipe, job or profile asks for what cannot be done."""


class PluginNotFound(EdgeCompressError):
    """No plug-in has that name."""


class RecordError(EdgeCompressError):
    """A record or folder on disk is not what it should be."""


class ModelError(EdgeCompressError):
    """A model folder that cannot be loaded, or an edit it cannot take."""


class AudioError(EdgeCompressError):
    """No usable audio where audio was asked for."""


class TechniqueError(EdgeCompressError):
    """A technique could not be carried out."""


class ExportError(EdgeCompressError):
    """An exporter could not write its format."""


class ParityError(ExportError):
    """An exported model does not say what torch says."""


class DeviceError(EdgeCompressError):
    """Something between here and the board."""


class Unreachable(DeviceError):
    """Nothing answers at the device's address in time."""


class HostKeyUnknown(DeviceError):
    """The host key is not pinned yet."""


class HostKeyChanged(DeviceError):
    """The host shows another key than the pinned one; nothing was sent."""


class Refused(DeviceError):
    """The device says no."""


class RuntimeMissing(DeviceError):
    """The device's Python cannot import the runtime the artifact needs."""


class AgentFailed(DeviceError):
    """The agent reported a failure."""


class AgentDied(DeviceError):
    """The agent's event stream stopped without an ending."""


class DeviceTimeout(DeviceError):
    """A job ran past its time limit and its process group was ended."""


class DeviceFull(DeviceError):
    """No space left on the device."""


class Busy(DeviceError):
    """Another session is measuring on this device."""
