# SPDX-License-Identifier: Apache-2.0
"""Bytes in, bytes out: addresses, handshake, status; used by both ends."""
