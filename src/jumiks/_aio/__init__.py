# SPDX-License-Identifier: Apache-2.0
"""The two classes of `jumiks.aio`, each in a module of its own."""
