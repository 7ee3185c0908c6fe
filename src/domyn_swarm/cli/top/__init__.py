"""The live view `top`: a Textual screen that shows what the services return."""
