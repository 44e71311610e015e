"""Errors that reach a caller: one base class, with the HTTP status and code that the API answers.

Raised below the API too, where they are plain exceptions: nothing here knows HTTP libraries.
"""


class ServiceError(Exception):
    """A request that cannot be served.

    `param` names the offending field, `code` is machine-readable. `logged` is what the log may hold
    of the message, which may quote what a caller said.
    """

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        logged: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.logged = message if logged is None else logged
        self.param = param
        self.code = code or type(self).code


class InvalidRequestError(ServiceError):
    """A field is wrong or unknown."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class UnauthorizedError(ServiceError):
    """No key, or an unknown one."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class ForbiddenError(ServiceError):
    """The operator's settings do not allow this."""

    status, type, code = 403, "permission_error", "forbidden"


class NotFoundError(ServiceError):
    """No such thing."""

    status, type, code = 404, "invalid_request_error", "not_found"


class ConflictError(ServiceError):
    """The name or the state is taken."""

    status, type, code = 409, "invalid_request_error", "conflict"


class PreconditionFailedError(ServiceError):
    """`If-Match` or `If-None-Match` does not hold."""

    status, type, code = 412, "invalid_request_error", "precondition_failed"


class TooLargeError(ServiceError):
    """The body is too large."""

    status, type, code = 413, "invalid_request_error", "body_too_large"


class UnprocessableError(ServiceError):
    """Well-formed, but it cannot be built."""

    status, type, code = 422, "invalid_request_error", "cannot_be_built"


class RetryLaterError(ServiceError):
    """Try again after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: int = 1, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class QueueFullError(RetryLaterError):
    """The waiting queue is full."""

    status, type, code = 429, "rate_limit_error", "queue_full"


class UnavailableError(RetryLaterError):
    """Loading, draining, or the engine has failed."""

    status, type, code = 503, "server_error", "unavailable"
