"""What requests have in common in the log, and what stands for an answer that never came. Pure."""

from capture import contexts
from serving import state, wire
from serving.gateway import routing

MOST_CONTEXT_BYTES = 1 << 20
NO_ANSWER = wire.Answer(0, 0, wire.JSON, 0, 0, 0, 0, None, b"")


class Contexts:
    """Contexts that were packed before: to pack one costs more than all else of an exchange."""

    def __init__(self) -> None:
        self._packed: dict[tuple[object, ...], bytes] = {}
        self._bytes = 0

    def of(
        self,
        endpoint: state.EndpointView,
        capture: state.CaptureView,
        choice: routing.Choice | None,
        user: str,
        content_type: bytes | None,
        is_copy: bool = False,
    ) -> bytes:
        """What a request has in common with others. content_type: header as it was sent."""
        if choice is None:
            drawn: tuple[object, ...] = (None,)
        else:
            # Of one configuration an id means one entity, and a share one split.
            drawn = choice.entity.id, choice.share
        version, fraction = endpoint.config_version, capture.sampling_fraction
        key = (endpoint.id, version, fraction, *drawn, user, content_type, is_copy)
        found = self._packed.get(key)
        if found is None:
            entity = None if choice is None else choice.entity
            found = self._packed[key] = contexts.packed(
                contexts.Context(
                    sampling_fraction=fraction,
                    served_entity_id=None if entity is None else entity.id,
                    requester=user,
                    endpoint_id=endpoint.id,
                    served_entity_name=None if entity is None else entity.name,
                    model_name=None if entity is None else entity.model_name,
                    model_version=None if entity is None else entity.model_version,
                    config_version=version,
                    route_share=None if choice is None else choice.share,
                    route_split=None if choice is None else choice.split,
                    shadow=is_copy,
                    content_type=None if content_type is None else content_type.decode("latin-1"),
                )
            )
            self._bytes += len(found)
            if self._bytes > MOST_CONTEXT_BYTES:
                self._packed.clear()
                self._bytes = 0
        return found
