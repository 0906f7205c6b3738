from pystache.common import PystacheError

class KeyNotFoundError(PystacheError):
    key: str
