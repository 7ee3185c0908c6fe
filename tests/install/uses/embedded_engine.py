"""Import the embedded engine and the server that runs it."""

import xllamacpp

from domyn_swarm.engines import llamacpp_server

assert xllamacpp.CommonParams()
assert llamacpp_server.main
print("imported")
