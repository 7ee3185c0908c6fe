"""Commands: each one parses, calls a service, renders. Only here is anything printed."""
