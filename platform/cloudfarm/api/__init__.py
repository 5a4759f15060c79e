"""The front door: HTTP in, use cases called, HTTP out.

``context``     what the application is made of.
``app``         puts it together.
``auth``        finds the secret in a request and says who it is.
``middleware``  what holds for every request: size limits, security headers, HEAD, the last net for errors.
``problem``     the one shape of errors.
``schemas``     bodies of requests and answers.
``routers/``    the routes, a module a subject. They are thin: everything that decides is in ``usecases``.
"""

from cloudfarm.api.app import create_app
from cloudfarm.api.context import ApiContext

__all__ = ["ApiContext", "create_app"]
