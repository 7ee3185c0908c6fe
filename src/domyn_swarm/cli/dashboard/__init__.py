"""The dashboard: a local page, alive, over the services that the live view uses."""
