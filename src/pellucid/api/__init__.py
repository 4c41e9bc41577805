"""The HTTP face of Pellucid: ``app.create_app(services)``."""
