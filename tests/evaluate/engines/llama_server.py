"""A llama-server on a free port of this machine: python llama_server.py MODEL.gguf [CHAT_TEMPLATE]; prints its address
and waits."""

from __future__ import annotations

import sys
import time

import xllamacpp


def main() -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.port = 0
    parameters.n_ctx = 4096
    parameters.n_parallel = 4
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = False
    if len(sys.argv) > 2:
        parameters.chat_template = sys.argv[2]
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
