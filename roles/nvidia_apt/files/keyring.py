# Python 2.7 and 3: copies a public key argv[1] to argv[2] as apt reads it, an armoured one decoded (RFC 4880, 6.2).
import base64
import os
import sys

source, target = sys.argv[1:]
with open(source, "rb") as stream:
    key = stream.read()
if key.startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"):
    body = key.replace(b"\r", b"").split(b"\n\n", 1)[1].split(b"-----END", 1)[0].split()
    key = base64.b64decode(b"".join(line for line in body if not line.startswith(b"=")))
old = open(target, "rb").read() if os.path.exists(target) else None
if key != old:
    with open(target, "wb") as stream:
        stream.write(key)
    os.chmod(target, 0o644)
    print("written")
