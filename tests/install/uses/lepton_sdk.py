"""Import all that is used of Lepton's SDK."""

from domyn_swarm.backends.lepton.sdk import Sdk, version

assert Sdk()
print(version())
