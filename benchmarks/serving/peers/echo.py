"""Peer: what HTTP alone costs: uvicorn with a bare ASGI application that gives the body back.

No router, no framework, no JSON, no model. uvicorn with uvloop and httptools, one process.
"""

import sys

import uvicorn

HEADERS = [(b"content-type", b"application/json")]


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    length = (b"content-length", b"%d" % len(body))
    start = {"type": "http.response.start", "status": 200, "headers": [*HEADERS, length]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


uvicorn.run(app, port=int(sys.argv[2]), loop="uvloop", http="httptools", access_log=False,
            lifespan="off")  # fmt: skip
