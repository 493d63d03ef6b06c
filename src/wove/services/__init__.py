"""Worker services: what an environment of executor ``http``, ``grpc`` or ``websocket`` points at."""
