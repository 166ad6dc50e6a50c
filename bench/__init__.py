# SPDX-License-Identifier: Apache-2.0
"""Speed: jumiks beside what a user would pick instead (docs/performance.md)."""
