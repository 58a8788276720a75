"""Robots with openpi's own client, for `test_serve_openpi_client.py`; runs where openpi-client is installed.

python openpi_peer.py HOST PORT FILE WHAT [API_KEY]

FILE: .npz, "ROW:KEY" -> what the client sends. WHAT:
chunks: the chunk of each row, into FILE.answers.npz, and what the server says of itself, as JSON.
steps: the same, a step at a time by ActionChunkBroker.
for-ever: the first row again and again; prints "answered" each time.
garbage: what is no message; prints the server's answer.
errors: a row without its state, which is refused; then a new client gets its chunks as with `chunks`.
"""

import json
import sys

import numpy as np
from openpi_client import action_chunk_broker, websocket_client_policy  # type: ignore[import-not-found]


def read(path):
    """The observations by row."""
    rows = {}
    with np.load(path) as file:
        for name in file.files:
            row, key = name.split(":", 1)
            value = file[name]
            rows.setdefault(int(row), {})[key] = str(value) if value.dtype.kind == "U" else value
    return [rows[row] for row in sorted(rows)]


def main(host, port, path, what, api_key=None):
    """See above."""
    rows = read(path)

    def connected():
        return websocket_client_policy.WebsocketClientPolicy(host, int(port), api_key)

    client = connected()
    told = client.get_server_metadata()
    if what == "for-ever":
        while True:
            client.infer(rows[0])
            print("answered", flush=True)
    if what == "garbage":
        client._ws.send(bytes(range(200, 256)) * 50)
        print(client._ws.recv(), flush=True)
        return
    if what == "errors":
        try:
            client.infer({key: value for key, value in rows[0].items() if "state" not in key})
        except RuntimeError as error:
            print(error, flush=True)
        client = connected()
    if what == "steps":
        horizon = told["action_horizon"]
        broker = action_chunk_broker.ActionChunkBroker(client, horizon)
        answers = [np.stack([broker.infer(row)["actions"] for _ in range(horizon)]) for row in rows]
    else:
        found = [client.infer(row) for row in rows]
        assert "prev_total_ms" not in found[0]["server_timing"]
        assert all(answer["server_timing"]["prev_total_ms"] > 0 for answer in found[1:])
        assert all(answer["server_timing"]["infer_ms"] > 0 for answer in found)
        answers = [answer["actions"] for answer in found]
    np.savez(path + ".answers.npz", np.stack(answers))
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
