"""Counters of XLA compilations, from jax's own monitoring."""

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_PREPARED = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")


class _Log:
    """Every compilation of this process since the first use of this module."""

    def __init__(self):
        self.count = 0
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_):
        self.count += event == _COMPILED
        if event == _COMPILED or event in _PREPARED:
            self.seconds += duration


_log = _Log()


class Compilations:
    """Compilations since this object was made: `count` programs in `seconds`."""

    def __init__(self):
        self._count, self._seconds = _log.count, _log.seconds

    @property
    def count(self) -> int:
        """Programs compiled (or fetched from the persistent cache)."""
        return _log.count - self._count

    @property
    def seconds(self) -> float:
        """Time spent in it: tracing, lowering, compiling."""
        return _log.seconds - self._seconds
