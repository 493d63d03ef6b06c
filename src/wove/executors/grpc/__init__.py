"""The executor ``grpc``: one unary call for each command."""
