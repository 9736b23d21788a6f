"""The server as the monitors see it: over HTTP, like everybody, with the service token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2

from capture import errors, tls
from capture.settings import Settings

TIMEOUT_SECONDS = 30.0


class Refused(errors.InferlakeError):
    """The server did not do what was asked; the message is its own."""

    status, error_code = 502, "TEMPORARILY_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Traffic:
    """An endpoint's present configuration. `shares`: served entity -> percentage."""

    config_version: int
    shares: Mapping[str, int]
    updating: bool


class Server:
    """Calls of one process. Every method raises Refused."""

    def __init__(self, settings: Settings) -> None:
        token = settings.service_token or settings.admin_token or settings.token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self.http = httpx2.Client(
            base_url=settings.url,
            headers=headers,
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
            verify=tls.trust(settings.tls_certificate),
        )

    def traffic(self, endpoint: str) -> Traffic:
        """Who gets how much now."""
        found = self._call("GET", f"/api/2.0/serving-endpoints/{quote(endpoint, safe='')}")
        config = found.get("config") or {}
        update = (found.get("state") or {}).get("config_update")
        return Traffic(
            int(config.get("config_version") or 0), shares(config), update == "IN_PROGRESS"
        )

    def versions(self, endpoint: str) -> list[dict[str, Any]]:
        """Configurations of the endpoint, newest first."""
        return list(self._call("GET", f"{_path(endpoint)}/versions")["versions"])

    def promote(
        self, endpoint: str, served_entity: str, percentage: int, config_version: int, reason: str
    ) -> int:
        """Give a served entity this much traffic, unless the configuration moved on. Gives the new
        configuration version."""
        body = {
            "served_entity": served_entity,
            "traffic_percentage": percentage,
            "if_config_version": config_version,
            "reason": reason,
            "origin": "ramp",
        }
        return _version_of(self._call("POST", f"{_path(endpoint)}/promote", body))

    def roll_back(self, endpoint: str, to_config_version: int, reason: str) -> int:
        """Restore an earlier configuration. Gives the new configuration version."""
        body = {"to_config_version": to_config_version, "reason": reason, "origin": "ramp"}
        return _version_of(self._call("POST", f"{_path(endpoint)}/rollback", body))

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            answer = self.http.request(method, path, json=body)
            found = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise Refused(f"The server does not answer: {type(error).__name__}.") from None
        if answer.status_code >= 400:
            said = found.get("message") if isinstance(found, dict) else None
            raise Refused(str(said or f"The server answered {answer.status_code}."))
        return dict(found)

    def close(self) -> None:
        self.http.close()


def _path(endpoint: str) -> str:
    return f"/api/1.0/endpoints/{quote(endpoint, safe='')}"


def _version_of(endpoint: Mapping[str, Any]) -> int:
    """The configuration version that a change of traffic made, active or on its way."""
    for part in ("pending_config", "config"):
        found = (endpoint.get(part) or {}).get("config_version")
        if found is not None:
            return int(found)
    return 0


def shares(config: Mapping[str, Any]) -> dict[str, int]:
    """Served entity -> percentage of a configuration."""
    routes = (config.get("traffic_config") or {}).get("routes") or []
    return {
        route.get("served_model_name") or route["served_entity_name"]: int(
            route["traffic_percentage"]
        )
        for route in routes
    }
