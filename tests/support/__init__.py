# SPDX-License-Identifier: Apache-2.0
"""Helpers of the tests, which import from here and never from each other."""
