"""What the API promises: views and their words, bodies, and the tables of operations.

An operation is one method with its row in :mod:`~pannier.contract.operations` (for people and their tools) or
:mod:`~pannier.contract.peers` (for other nodes), with the types that it takes and answers in
:mod:`~pannier.contract.bodies` and :mod:`~pannier.contract.views`. Beside that it needs its implementation in
:mod:`pannier.node`, in the tests' :mod:`pannier.testing.api`, and perhaps a command; the server, the clients and
the OpenAPI document follow.
"""
