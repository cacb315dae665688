"""The REST API: server, OpenAPI document and clients. An edge: it parses and answers, nothing else."""
