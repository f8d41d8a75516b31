"""TLS contexts for HTTP/2: ALPN h2, nothing below TLS 1.2 (RFC 9113 section 9.2)."""

from __future__ import annotations

import os
import ssl

__all__ = ["client_context", "server_context"]

File = str | os.PathLike[str]


def server_context(cert: File, key: File, *, client_ca: File | None = None) -> ssl.SSLContext:
    """Returns the context of a server with the certificate chain and key in those PEM files.

    With `client_ca` every client must show a certificate that one of those authorities has signed (mTLS).
    HTTP/1.1 is offered too: health checks use it. Raises OSError (ssl.SSLError for bad contents), with the
    file's name in it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context, ["h2", "http/1.1"])
    _load_chain(context, cert, key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_authorities(context, client_ca)
    return context


def client_context(
    *, ca: File | None = None, cert: File | None = None, key: File | None = None
) -> ssl.SSLContext:
    """Returns the context of a client: verifies the server's certificate and name.

    `ca` replaces the authorities of the system; `cert` and `key` are shown to servers that ask for them.
    Raises OSError (ssl.SSLError for bad contents), with the file's name in it, and ValueError for one of
    `cert` and `key` without the other.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context, ["h2"])
    if ca is not None:
        _load_authorities(context, ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if (cert is None) != (key is None):
        raise ValueError(f"certificate {cert!r} and key {key!r} must be given together")
    if cert is not None and key is not None:
        _load_chain(context, cert, key)
    return context


def _restrict(context: ssl.SSLContext, protocols: list[str]) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # For TLS 1.2 the ciphers that HTTP/2 does not forbid (RFC 9113 appendix A); those of 1.3 are all good.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(protocols)


def _load_chain(context: ssl.SSLContext, cert: File, key: File) -> None:
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        raise ssl.SSLError(error.errno, f"certificate {cert} with key {key}: {error.strerror}") from error
    except OSError as error:  # the name is missing in those of OpenSSL
        raise type(error)(error.errno, error.strerror, f"{cert} or {key}") from error


def _load_authorities(context: ssl.SSLContext, ca: File) -> None:
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError as error:
        raise ssl.SSLError(error.errno, f"certificates {ca}: {error.strerror}") from error
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(ca)) from error
