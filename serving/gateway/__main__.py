"""`python -m serving.gateway`: the HTTP server, control plane and data plane in one process."""

from capture.settings import Settings
from serving import app
from serving.gateway import server


def main() -> None:
    """Settings from the environment, then serve until SIGTERM."""
    server.run(Settings(), app.build)


if __name__ == "__main__":
    main()
