"""What must be there before an entity's first replica: model folder, Python, secrets."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from capture import database, logline
from capture.settings import Settings
from serving import registry, state, vault
from serving.controller import building, environments, shapes

log = logline.logger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a start needs. model: its files, to be checked before each start; variables: the
    entity's own, secrets opened."""

    model: registry.Accepted
    python: str
    variables: dict[str, str]

    @property
    def folder(self) -> Path:
        return self.model.folder


class Preparations:
    """One per wanted entity. `done` is called in the event loop at every end; `imported` waits for
    an interpreter's imports."""

    def __init__(
        self,
        settings: Settings,
        engine: sa.Engine,
        done: Callable[[], None],
        imported: Callable[[str], Awaitable[None]],
    ) -> None:
        self.settings, self.engine, self.done, self.imported = settings, engine, done, imported
        self._proving: dict[str, str] = {}
        self._seen: dict[str, shapes.Preparation] = {}
        self._ready: dict[str, Prepared] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def seen(self) -> dict[str, shapes.Preparation]:
        """How far each is, by served entity id."""
        return dict(self._seen)

    def ready(self, entity_id: str) -> Prepared:
        """What a finished preparation gave."""
        return self._ready[entity_id]

    def pythons(self) -> set[str]:
        """The interpreters that entities run in, or will."""
        return {*self._proving.values(), *(each.python for each in self._ready.values())}

    def keep(self, entity_ids: Collection[str]) -> None:
        """Forget those of entities that nobody wants any more."""
        for entity_id in self._seen.keys() - entity_ids:
            self._seen.pop(entity_id, None)
            self._ready.pop(entity_id, None)

    def begin(self, entity: state.WantedEntity) -> None:
        """Prepare an entity, again if that failed before; one at a time."""
        running = self._tasks.get(entity.id)
        if running is not None and not running.done():
            return
        self._seen[entity.id] = shapes.Preparation("working", "Finding the model")
        self._tasks[entity.id] = asyncio.create_task(self._prepare(entity))

    async def _prepare(self, entity: state.WantedEntity) -> None:
        loop = asyncio.get_running_loop()

        def say(stage: str) -> None:
            loop.call_soon_threadsafe(self._say, entity.id, stage)

        async def proven(python: str) -> None:
            self._proving[entity.id] = python
            await self.imported(python)

        def prove(python: str) -> Future[None]:
            return asyncio.run_coroutine_threadsafe(proven(python), loop)

        try:
            prepared = await asyncio.to_thread(self._prepared, entity, say, prove)
        except Exception as error:  # noqa: BLE001 - whatever it is, this entity cannot start
            log.warning("preparation_failed", entity=entity.name, reason=str(error))
            told = logline.mask(str(error)) or type(error).__name__
            self._end(entity.id, shapes.Preparation("failed", told))
            return
        self._ready[entity.id] = prepared
        self._end(entity.id, shapes.Preparation("ready"))

    def _say(self, entity_id: str, stage: str) -> None:
        known = self._seen.get(entity_id)
        if known is not None and known.stage == "working":
            self._seen[entity_id] = dataclasses.replace(known, message=stage)

    def _end(self, entity_id: str, found: shapes.Preparation) -> None:
        del self._tasks[entity_id]
        self._proving.pop(entity_id, None)
        if entity_id in self._seen:
            self._seen[entity_id] = found
        self.done()

    def _prepared(
        self, entity: state.WantedEntity, say: Callable[[str], None], prove: building.Prove
    ) -> Prepared:
        definition = entity.definition
        variables = self._variables(definition.get("environment_vars") or {})
        mode = environments.mode(variables.pop(environments.MODE_VARIABLE, "auto"))
        model = self._model(definition)
        python = environments.interpreter(
            model.folder,
            mode,
            self.settings.environments_dir,
            self.settings.deployment_timeout_seconds,
            say,
            prove,
        )
        return Prepared(model, python, variables)

    def _model(self, definition: Mapping[str, Any]) -> registry.Accepted:
        """The model's files, found to be those that the configuration was accepted with."""
        name, version = definition["entity_name"], definition["entity_version"]
        folder = registry.find(self.settings, name, version).folder
        model = registry.Accepted(name, version, folder, definition.get("model_digest"))
        model.check()
        return model

    def _variables(self, definition: Mapping[str, str]) -> dict[str, str]:
        with database.reading(self.engine) as connection:
            return vault.resolve_all(connection, self.settings, definition)
