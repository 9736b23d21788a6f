"""The calls that the demo makes on the HTTP API: what a script or a CI job of a user would do."""

import time
from datetime import datetime
from typing import Any

import httpx2

ENDPOINT = "flight-delay"
MONITORED = "main.flights.flight_delay_unpacked"
REFRESH_SECONDS = 120


class Refused(Exception):
    """The server answered a call of the demo with an error; the message is the server's."""


def entity(version: str) -> dict[str, Any]:
    """Served entity `v1`: version 1 of the registered model."""
    return {
        "name": version,
        "entity_name": "main.flights.flight_delay",
        "entity_version": version.removeprefix("v"),
        "workload_size": "Small",
        "scale_to_zero_enabled": False,
    }


class Control:
    """An administrator's view of one server."""

    def __init__(self, url: str, token: str) -> None:
        self.http = httpx2.Client(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False
        )

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """One call; gives the decoded reply. Raises Refused."""
        answer = self.http.request(method, path, json=body, params=query or None)
        if answer.status_code >= 400:
            raise Refused(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def endpoint(self) -> dict[str, Any]:
        return self.call("GET", f"/api/2.0/serving-endpoints/{ENDPOINT}")

    def wait_until_ready(self, seconds: float = 120) -> dict[str, Any]:
        """The endpoint once its update is done. Raises Refused if it failed or takes too long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.endpoint()
            update = found["state"]["config_update"]
            if update == "NOT_UPDATING":
                return found
            if update != "IN_PROGRESS":
                raise Refused(f"The configuration of '{ENDPOINT}' failed: {found}")
            time.sleep(0.1)
        raise Refused(f"'{ENDPOINT}' was not ready after {seconds:.0f} s.")

    def serve(self, shares: dict[str, int]) -> dict[str, Any]:
        """Put these versions live with these percentages; waits until they answer."""
        config = {
            "served_entities": [entity(version) for version in shares],
            "traffic_config": {
                "routes": [
                    {"served_model_name": version, "traffic_percentage": percentage}
                    for version, percentage in shares.items()
                ]
            },
        }
        self.call("PUT", f"/api/2.0/serving-endpoints/{ENDPOINT}/config", config)
        return self.wait_until_ready()

    def shares(self) -> dict[str, int]:
        """Percentage per version now."""
        routes = self.endpoint()["config"]["traffic_config"]["routes"]
        return {route["served_model_name"]: route["traffic_percentage"] for route in routes}

    def committed(self) -> tuple[int, int]:
        """Requests and labels that are rows of their tables."""
        found = self.call("GET", f"/api/1.0/endpoints/{ENDPOINT}/capture")
        return found["committed_rows"], found["committed_labels"]

    def refresh(self, until: datetime) -> None:
        """Let the monitor judge everything up to a moment of the story. Raises Refused."""
        path = f"/api/2.1/unity-catalog/tables/{MONITORED}/monitor/refreshes"
        refresh = self.call("POST", path, {"until": until.isoformat()})
        deadline = time.monotonic() + REFRESH_SECONDS
        while refresh["state"] in ("PENDING", "RUNNING"):
            if time.monotonic() > deadline:
                raise Refused(f"The refresh until {until} took over {REFRESH_SECONDS} s.")
            time.sleep(0.02)
            refresh = self.call("GET", f"{path}/{refresh['refresh_id']}")
        if refresh["state"] != "SUCCESS":
            raise Refused(f"The refresh until {until} failed: {refresh.get('message')}")

    def decision(self, challenger: str) -> dict[str, Any] | None:
        """The newest decision on a challenger, if there is one."""
        experiment = self.call("GET", f"/api/1.0/endpoints/{ENDPOINT}/experiment")
        found = [d for d in experiment["decisions"] if d["challenger"] == challenger]
        return found[0] if found else None

    def experiment(self, policy: dict[str, Any]) -> None:
        self.call("PUT", f"/api/1.0/endpoints/{ENDPOINT}/experiment", policy)

    def guard(self, challenger: str, steps: list[int]) -> None:
        """Let the server take the challenger's traffic away by itself on a regression."""
        ramp = {
            "challenger": challenger,
            "steps": steps,
            "auto": False,
            "on_regression": "roll_back",
        }
        self.call("PUT", f"/api/1.0/endpoints/{ENDPOINT}/ramp", ramp)

    def ramp_state(self) -> str:
        return self.call("GET", f"/api/1.0/endpoints/{ENDPOINT}/ramp")["state"]

    def open_alerts(self) -> list[dict[str, Any]]:
        return self.call("GET", "/api/1.0/alerts", state="open", page_size=1000)["alerts"]

    def open_recommendations(self) -> list[dict[str, Any]]:
        found = self.call("GET", "/api/1.0/recommendations", endpoint=ENDPOINT, state="open")
        return found["recommendations"]

    def drift(self, start: datetime, end: datetime) -> list[dict[str, Any]]:
        """Columns with their cells of the windows that begin in [start, end)."""
        path = f"/api/1.0/monitors/{MONITORED}/drift"
        query = {"from": start.isoformat(), "to": end.isoformat()}
        return self.call("GET", path, None, **query)["columns"]
