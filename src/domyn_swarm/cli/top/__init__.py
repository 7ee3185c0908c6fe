"""The live view: a Textual screen over the services."""
