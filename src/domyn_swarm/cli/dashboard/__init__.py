"""The dashboard: a live web page that shows what the services return."""
