"""`python -m serving.gateway`: the HTTP server, control plane and data plane in one process."""

import gc


def main() -> None:
    """Settings from the environment, then serve until SIGTERM."""
    # Nothing of what is imported and built is garbage: to look for some takes a sixth of the time
    # in which a killed gateway is back. The server collects once, and from then on as ever.
    gc.disable()
    from capture.settings import Settings
    from serving import app
    from serving.gateway import server

    server.run(Settings(), app.build)


if __name__ == "__main__":
    main()
