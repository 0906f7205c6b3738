"""The one error that reaches a user, and the end by a signal."""


class KilnError(Exception):
    """Bad input or a missing prerequisite, told in one sentence: what is wrong, where, and the way out.

    The command line prints it without a traceback and exits with code 2.

    what:  the thing that is wrong, e.g. ``release 9.9 does not exist``
    where: file, ``file:line``, host or command at fault; empty when ``what`` says it already
    fix:   what the user does next, in the imperative
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        suffix = f"; {self.fix}" if self.fix else ""
        return f"{prefix}{self.what}{suffix}"


class TerminatedError(BaseException):
    """SIGTERM ended the command. As KeyboardInterrupt it is no error of the work in hand, which must not go on."""
